"""Memory of this process, as the system counts it. Imports nothing heavy."""

import platform
import resource
from pathlib import Path


def peak_rss() -> int:
    """The most memory this process has had resident, in bytes."""
    if platform.system() == "Linux":
        # Not getrusage: a process that was started by a large one counts that one's peak.
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if platform.system() == "Darwin" else peak * 1024
