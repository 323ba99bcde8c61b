"""Health checks: what clients would get of each backend, found by asking as they ask.

Checks are sent to the VIP itself, through the tunnel to one backend each, so that a check that
succeeds says: tunnel, VIP, server and the way back work. `monitor.HealthMonitor` runs them.
"""
