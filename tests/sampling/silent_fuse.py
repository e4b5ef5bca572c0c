"""A FUSE file system that answers only what mounting and chdir need; a statfs is never answered. Arguments: the mount point."""

from __future__ import annotations

import ctypes
import os
import struct
import sys

_LOOKUP, _GETATTR, _STATFS, _INIT, _ACCESS = 1, 3, 17, 26, 34
_ATTR = struct.pack("<QQQQQQIIIIIIIIII", 1, 0, 0, 0, 0, 0, 0, 0, 0, 0o040755, 2, 0, 0, 0, 4096, 0)


def main() -> int:
    fd = os.open("/dev/fuse", os.O_RDWR)
    libc = ctypes.CDLL(None, use_errno=True)
    options = f"fd={fd},rootmode=40000,user_id={os.getuid()},group_id={os.getgid()},allow_other"
    if libc.mount(b"silent", sys.argv[1].encode(), b"fuse.silent", 0, options.encode()) != 0:
        print(os.strerror(ctypes.get_errno()), flush=True)
        return 1
    print("mounted", flush=True)
    while True:
        request = os.read(fd, 1 << 18)
        _, opcode, unique = struct.unpack_from("<IIQ", request)
        if opcode == _INIT:
            _, _, ahead, _ = struct.unpack_from("<IIII", request, 40)
            answer = struct.pack("<IIIIHHIIHHI28x", 7, 31, ahead, 0, 12, 9, 1 << 17, 1, 0, 0, 0)
        elif opcode == _GETATTR:
            answer = struct.pack("<QII", 3600, 0, 0) + _ATTR
        elif opcode == _ACCESS:
            answer = b""
        else:
            continue
        os.write(fd, struct.pack("<IiQ", 16 + len(answer), 0, unique) + answer)


if __name__ == "__main__":
    sys.exit(main())
