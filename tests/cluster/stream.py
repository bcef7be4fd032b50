"""One TCP stream each way between neighbours at once: what a limited link can carry at the most."""

import socket
import threading
import time

BLOCK = 1 << 20  # bytes handed to one call


def open_ring(
    me: str, following: str, port: int, patience: float = 10.0
) -> tuple[socket.socket, socket.socket]:
    """(stream to the address `following`, stream from whoever has `me` as its following one).

    Raises OSError if the others have not come after `patience` seconds.
    """
    with socket.create_server((me, port)) as door:
        door.settimeout(patience)
        end = time.monotonic() + patience
        while True:
            try:
                out = socket.create_connection((following, port), timeout=patience)
                break
            except OSError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.02)
        incoming, _ = door.accept()
    for stream in (out, incoming):
        stream.settimeout(120)
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return out, incoming


def pass_on(out: socket.socket, incoming: socket.socket, size: int) -> None:
    """Sends `size` bytes to the next one, and takes as many from the one before, both at once."""

    def send() -> None:
        block, left = memoryview(bytes(BLOCK)), size
        while left:
            part = min(left, BLOCK)
            out.sendall(block[:part])
            left -= part

    sender = threading.Thread(target=send)
    sender.start()
    room, got = memoryview(bytearray(BLOCK)), 0
    while got < size:
        part = incoming.recv_into(room, min(BLOCK, size - got))
        if not part:
            raise OSError("the stream ended early")
        got += part
    sender.join()


def main(me: str, following: str, size: int) -> None:
    """Prints the Gbit/s of one exchange, after a short one to open the window."""
    out, incoming = open_ring(me, following, 5999)
    pass_on(out, incoming, 4 * BLOCK)
    began = time.perf_counter()
    pass_on(out, incoming, size)
    print(f"{size * 8 / (time.perf_counter() - began) / 1e9:.4f}")


if __name__ == "__main__":
    import sys

    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
