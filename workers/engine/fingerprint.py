"""Would this model, elsewhere or tomorrow, choose the same tokens? Hashes that say so, without reading gigabytes."""

import hashlib
from pathlib import Path

_SMALL_BYTES = 1 << 20  # files up to this are hashed whole
_NUM_SAMPLES = 256
_SAMPLE_BYTES = 4096
_WEIGHTS = ("*.safetensors", "*.bin")


def model_hash(folder: Path) -> str:
    """SHA-256 over config.json and each weight file's name, size and sampled bytes; no time stamps.

    Of a large file these bytes are read: the first MiB, which for safetensors holds the header (names, types, shapes
    and offsets of the tensors), and 256 evenly spaced pieces of 4 KiB, the last at the end. Training moves every
    weight, so it shows; an edit of a few weights by hand may not.
    """
    digest = hashlib.sha256()
    files = [path for name in ("config.json", "generation_config.json") if (path := folder / name).is_file()]
    files += sorted(path for pattern in _WEIGHTS for path in folder.glob(pattern))
    for path in files:
        size = path.stat().st_size
        digest.update(f"{path.name}:{size}:".encode())
        with path.open("rb") as file:
            digest.update(file.read(_SMALL_BYTES))
            if size > _SMALL_BYTES:
                for number in range(1, _NUM_SAMPLES + 1):
                    file.seek(max(0, size * number // _NUM_SAMPLES - _SAMPLE_BYTES))
                    digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()


def text_hash(*texts: str) -> str:
    """SHA-256 over texts, in order."""
    digest = hashlib.sha256()
    for text in texts:
        encoded = text.encode()
        digest.update(len(encoded).to_bytes(8, "big") + encoded)
    return digest.hexdigest()
