#!/usr/bin/env python3
"""A check for `refed`: keeps a row whose Python blocks run without an error, each in a sandbox of bubblewrap (`bwrap`).

In it there is no network, no variable of yours, no file but a read-only /usr and an empty /tmp. Time, memory and files
are limited. It does not stop what uses a hole in the kernel, nor many processes that together fill the memory until the
time is up: where that matters, run all of this in a virtual machine.
"""

import json
import re
import resource
import subprocess
import sys
import tempfile

BLOCK = re.compile(r"^```(?:python|py)\b[^\n]*\n(.*?)^```", re.DOTALL | re.MULTILINE)
SECONDS = 5
LIMITS = {resource.RLIMIT_CPU: SECONDS, resource.RLIMIT_AS: 1 << 30, resource.RLIMIT_FSIZE: 1 << 20}
SANDBOX = (
    "bwrap --unshare-all --die-with-parent --new-session --clearenv --setenv PATH /usr/bin --ro-bind /usr /usr "
    "--symlink usr/bin /bin --symlink usr/lib /lib --symlink usr/lib64 /lib64 --proc /proc --dev /dev --tmpfs /tmp "
    "--chdir /tmp -- python3 -I -"
).split()


def run(code: str) -> tuple[int, str]:
    """The exit code of `code`, and the last line of its errors. Raises subprocess.TimeoutExpired."""
    with tempfile.TemporaryFile() as errors:
        sent = code.encode("utf-8", "replace")
        done = subprocess.run(SANDBOX, input=sent, stdout=subprocess.DEVNULL, stderr=errors, timeout=SECONDS)  # noqa: S603
        errors.seek(max(0, errors.seek(0, 2) - 2_000))
        return done.returncode, errors.read().decode("utf-8", "replace").strip().rpartition("\n")[2]


def main() -> int:
    """0 keeps the row, 1 drops it for the reason that is printed. Raises RuntimeError where there is no sandbox."""
    blocks = BLOCK.findall(json.load(sys.stdin)["response"])
    if blocks and (failed := run(""))[0] != 0:
        raise RuntimeError(f"the sandbox does not work: {failed[1]}")
    for code in blocks:
        try:
            status, error = run(code)
        except subprocess.TimeoutExpired:
            print(f"its code runs longer than {SECONDS} s")
            return 1
        if status != 0:
            print(f"its code fails: {error.partition(':')[0] or f'exit code {status}'}")
            return 1
    return 0


if __name__ == "__main__":
    for limit, most in LIMITS.items():
        resource.setrlimit(limit, (most, most))
    try:
        sys.exit(main())
    except Exception as error:  # noqa: BLE001 — Python's own exit code for it is 1, which drops the row
        print(error, file=sys.stderr)
        sys.exit(2)
