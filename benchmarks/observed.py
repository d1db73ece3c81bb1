"""What processes of this machine use, from /proc, whether in a container or not."""

import os
import subprocess
from pathlib import Path


def cpu(pid):
    """Seconds of processor time so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory(pid):
    """Resident bytes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) * 1024
    raise ProcessLookupError(pid)


def inside(container, word):
    """Process ids, on this machine, of a container's processes whose command line has `word` in it, the
    oldest first."""
    shown = subprocess.run(
        ["docker", "top", container, "-o", "pid,args"], check=True, capture_output=True, text=True
    )
    rows = [line.split(None, 1) for line in shown.stdout.splitlines()[1:]]
    return sorted(int(pid) for pid, args in rows if word in args)


def address(container):
    """Where a container is reached without Docker's proxy in between."""
    form = "{{range .NetworkSettings.Networks}}{{.IPAddress}} {{end}}"
    shown = subprocess.run(
        ["docker", "inspect", "--format", form, container], check=True, capture_output=True, text=True
    )
    return shown.stdout.split()[0]
