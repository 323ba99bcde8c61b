"""The lab's pair of servers, which has its sockets for a while before it serves."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

from sockway.lab.servers.pair import main

if __name__ == "__main__":
    Path(os.environ["SOCKWAY_RUNTIME"], "has-sockets").touch()
    time.sleep(3)
    asyncio.run(main())
