"""Workers that begin with torch imported, which takes longer than what most tests ask of them.

``warm_python.py serve SOCKET`` forks one for each ``warm_python.py run SOCKET COMMAND ...``, which lends it streams,
folder and environment, and ends with its status, as a shell would.
"""

import gc
import json
import os
import select
import signal
import socket
import sys
from typing import NoReturn


def run(address: str, arguments: list[str]) -> int:
    """Have a worker run and return its status."""
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(address)
        request = json.dumps([arguments, os.getcwd(), dict(os.environ)]).encode()
        socket.send_fds(server, [len(request).to_bytes(4, "big")], [0, 1, 2])
        server.sendall(request)
        return server.recv(1)[0]


def serve(address: str) -> None:
    """Fork workers until stdin ends, with whoever started the server."""
    import_what_workers_import()
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        print("ready", flush=True)
        while sys.stdin not in select.select([listener, sys.stdin], [], [])[0]:
            client, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                keep(client)
            client.close()


def import_what_workers_import() -> None:
    """Import what takes long; none of it starts a thread."""
    import nibabel  # noqa: F401
    import scipy.ndimage  # noqa: F401
    import torch._dynamo  # by the first optimizer
    import torch.utils.tensorboard  # noqa: F401

    import MAESILLib.commands.reconstruct
    import MAESILLib.explore.encoding
    import MAESILLib.reconstruct.several
    import MAESILLib.training.trainer  # noqa: F401


def keep(client: socket.socket) -> NoReturn:
    """Fork a worker, and tell the client how it ended."""
    length, streams, _, _ = socket.recv_fds(client, 4, 3)
    with client.makefile("rb") as file:
        arguments, folder, environment = json.loads(file.read(int.from_bytes(length, "big")))
    if worker := os.fork():
        for stream in streams:
            os.close(stream)
        ended = os.pidfd_open(worker)
        if ended in select.select([client, ended], [], [])[0]:
            status = os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1])
            client.sendall(bytes([status if status >= 0 else 128 - status]))
        os._exit(0)  # a client that was killed leaves the worker alone, as a launcher does
    client.close()
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    sys.stdin = os.fdopen(0, encoding="utf-8", closefd=False)
    sys.stdout, sys.stderr = (os.fdopen(n, "w", encoding="utf-8", buffering=1, closefd=False) for n in (1, 2))
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv[1:] = arguments
    from MAESILLib.cli import main

    sys.exit(main())


if __name__ == "__main__":
    command, address, *arguments = sys.argv[1:]
    sys.exit(run(address, arguments) if command == "run" else serve(address))
