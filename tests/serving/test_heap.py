import platform
import subprocess
import sys

import pytest

PROGRAM = """
from speq.bench.memory import memory_of
from speq.serving.heap import return_freed_memory
kept = []
freed = [bytes(50_000) for _ in range(2000)]  # below the size from which the C library asks the system each time
for i in range(0, 2000, 100):
    kept.append(bytes(50_000))
del freed
before = memory_of()["anonymous"]
return_freed_memory()
print(before - memory_of()["anonymous"])
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries keep less and return it themselves")
def test_freed_memory_goes_back_to_the_system() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 50_000_000
