"""The engine's own process: `python -m workers.engine.child <socket descriptor> <parent's pid> <flight record's descriptor>`.

It takes commands from its parent and gives back one frame a step. It never writes to stdout, logs to stderr, leaves
Ctrl-C to its parent, and doesn't outlive it.
"""

import gc
import logging
import os
import signal
import socket
import sys

try:
    import msgspec
except ModuleNotFoundError as error:  # in an interpreter that isn't Penstock's own: vLLM's, say
    sys.exit(f"{sys.executable} has no package {error.name!r}, which the engine's process needs: install it there")

from workers.engine import wire
from workers.engine.channel import PARENT_GONE_STATUS, Channel, ParentGone, die_with_parent, die_with_spawner
from workers.engine.errors import OUTAGE_STATUS, EngineError, UpstreamUnavailable
from workers.engine.flight import FlightRecorder, Recorder
from workers.engine.protocol import Engine

logger = logging.getLogger("workers.engine.child")


def main(argv: list[str]) -> int:
    """Run until told to stop (0), until the start or the engine fails (1), the parent is gone (3) or the upstream (4)."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    # Loaders print progress and advice. Nobody reads it here, and a log's tail should show what went wrong.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # OpenMP's threads spin while they wait for each other. On cores that are shared, one that spins keeps another from
    # running, at each of thousands of small parallel regions: 42 instead of 750 tokens/s on two busy cores.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    connection = socket.socket(fileno=int(argv[1]))
    die_with_parent(connection, parent_pid=int(argv[2]))
    channel = Channel(connection)
    try:
        return _serve(channel, FlightRecorder(int(argv[3])))
    except ParentGone:
        return PARENT_GONE_STATUS
    except UpstreamUnavailable as error:
        logger.error("%s", error)  # noqa: TRY400 - it says all; a traceback would say where we noticed
        return OUTAGE_STATUS
    except EngineError:
        logger.exception("the engine failed")
        return 1


def _serve(channel: Channel, recorder: Recorder) -> int:
    first, *bodies = channel.receive(block=True)
    if first == wire.STOP_BODY:
        return 0
    hello, engine = _load(first)
    gc.collect()
    gc.freeze()  # a model's thousands of objects live as long as the process: no collection needs to look at them again
    channel.send(wire.frame(hello))
    if engine is None:
        return 1
    engine.recorder = recorder
    try:
        return _work(channel, engine, bodies)
    finally:
        engine.close()


def _work(channel: Channel, engine: Engine, bodies: list[bytes]) -> int:
    while True:
        for body in bodies:
            command = wire.decode_command(body)
            if isinstance(command, wire.Stop):
                return 0
            if isinstance(command, wire.Add):
                engine.add(command.request)
            else:
                engine.abort(command.request_id, command.choice)
        if engine.has_work():
            channel.send(wire.frame(engine.step()))
        bodies = channel.receive(block=not engine.has_work())


def _load(body: bytes) -> tuple[wire.Hello, Engine | None]:
    """The answer to the first frame. Broad: whatever went wrong, the parent is told, and the log has the traceback."""
    from workers.engine.load import load_engine

    try:
        config = wire.decode_config(body)
        loaded = load_engine(config)
    except EngineError as error:
        return wire.Failed(error.code, str(error)), None
    except msgspec.ValidationError as error:
        return wire.Failed("engine_config_invalid", f"the engine's settings are wrong: {error}"), None
    except ModuleNotFoundError as error:
        message = f"{sys.executable} has no package {error.name!r}, which this engine needs: install it there"
        return wire.Failed("engine_config_invalid", message), None
    except MemoryError as error:
        return wire.Failed("model_not_loadable", f"not enough memory to load {config.model}: {error}"), None
    except Exception as error:
        logger.exception("loading failed")
        return wire.Failed("engine_error", f"{type(error).__name__}: {error}"), None
    return wire.Ready(loaded.engine.info, loaded.tokenizer), loaded.engine


if __name__ == "__main__":
    status = main(sys.argv)
    logging.shutdown()
    # No teardown: a library's thread that hangs at exit must not keep the parent waiting.
    sys.stderr.flush()
    os._exit(status)
elif __name__ == "__mp_main__":  # a process that a library spawned from ours (vLLM's) imports our main module first
    die_with_spawner()
