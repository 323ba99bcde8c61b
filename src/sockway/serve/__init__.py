"""Running servers and releasing them: the supervisor behind `sockway serve`.

`sockway.serve.supervisor.Supervisor` runs a `sockway.serve.spec.ServeSpec`. Nothing is imported
here: commands that only talk to a supervisor start three times as fast without its modules.
"""
