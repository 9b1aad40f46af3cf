"""What every benchmark begins with: where its data lie, and a line of when, on what and with what it ran."""

import os
import platform
import sys
from datetime import date
from pathlib import Path

import torch


def data_folder() -> Path:
    """RETRIEVAL_DATA, the folder of data sets; a benchmark that has none ends here."""
    folder = os.environ.get("RETRIEVAL_DATA")
    return Path(folder) if folder else sys.exit("skipped: set RETRIEVAL_DATA to the folder of data sets")


def header() -> str:
    cpu = platform.machine()
    if Path("/proc/cpuinfo").exists():
        cpu = Path("/proc/cpuinfo").read_text().partition("model name\t: ")[2].partition("\n")[0] or cpu
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return (
        f"# {date.today()} · {cpu}, {torch.get_num_threads()} of {os.cpu_count()} cores · {device} · "
        f"Python {platform.python_version()}, torch {torch.__version__}\n# python {' '.join(sys.argv)}"
    )
