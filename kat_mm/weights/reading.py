"""Reads checkpoints of any kind, from anywhere, without letting them run code."""

import hashlib
import io
import re
import zipfile
from pathlib import Path

import torch
from filelock import FileLock  # torch requires it
from torch import Tensor

from ..errors import DataError
from .unpickling import load

HUB = 'hf-hub:'  # in front of a repository of Hugging Face, as timm has it
HUB_FILES = ('model.safetensors', 'pytorch_model.bin')
# torch stores tensors as they are; a file that unpacks to much more was made to fill the memory.
MOST_UNPACKED = 4


def read_checkpoint(
    source: str | Path, mmap: bool | None = True, map_location: object = 'cpu'
) -> object:
    """Reads a checkpoint, by default to the CPU, without letting it run code.

    Args:
        source: a file (.safetensors, or what `torch.save` wrote), an http(s) URL, or a repository
            of Hugging Face as hf-hub:owner/name or hf-hub:owner/name@revision. Nothing else
            reaches the network. A download must have the hash in its name, if it has one, as
            OpenMMLab's and torchvision's files have: name-01234567.pth.
        mmap: leaves tensors in the file until they are used, so it must not change until then.
            None is torch's default.
        map_location: as for `torch.load`.

    Raises:
        DataError: names the source, what is wrong with it and what to do.
    """
    path = _local_file(str(source))
    if not path.is_file():
        if path.is_dir():
            raise DataError(f'checkpoint {path} is a folder: name the file in it')
        raise DataError(f'checkpoint {path} does not exist{hub_hint(path)}')
    try:
        if path.suffix == '.safetensors':
            from safetensors.torch import load_file

            return _relocate(load_file(path), map_location)
        is_zip = zipfile.is_zipfile(path)  # files older than torch 1.6 are not, and not mapped
        if is_zip:
            _check_archive(path)
        return load(path, map_location, mmap if is_zip else False)
    except DataError:
        raise
    except Exception as error:  # damaged files fail in many ways
        if map_location != 'cpu':
            read_checkpoint(source)  # raises, unless the place is at fault and not the file
            raise
        raise DataError(f'checkpoint {source} cannot be read: {_unreadable(error)}') from error


def is_hub_id(source: str) -> bool:
    """Tells whether a source is a repository of Hugging Face: hf-hub:owner/name."""
    return source.startswith(HUB)


def hub_hint(path: str | Path) -> str:
    """Returns what to say of a file that does not exist, whose name may be that of a repository."""
    is_id = re.fullmatch(r'[\w-]+/[\w.-]+(@[\w.-]+)?', str(path))
    return f'. A repository of Hugging Face is {HUB}{path}' if is_id else ''


def _local_file(source: str) -> Path:
    """Returns the file of a source, downloaded where it is elsewhere."""
    if is_hub_id(source):
        return _from_hub(source.removeprefix(HUB))
    if re.match(r'https?://', source):
        return _from_url(source)
    if re.match(r'\w+://', source):
        raise DataError(
            f'checkpoint {source}: must be a file, an http(s) URL or {HUB}owner/name, a repository '
            'of Hugging Face'
        )
    return Path(source).expanduser()


def _from_hub(name: str) -> Path:
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
    except ModuleNotFoundError as error:
        raise DataError(
            f'checkpoint {name}: huggingface_hub is not installed: pip install huggingface_hub'
        ) from error
    repository, _, revision = name.partition('@')
    for file in HUB_FILES:
        try:
            return Path(hf_hub_download(repository, file, revision=revision or None))
        except LocalEntryNotFoundError as error:
            raise unreachable(f'{name} of Hugging Face', error) from error
        except EntryNotFoundError:
            continue
        except Exception as error:  # no such repository, no permission, no network, no space
            raise unreachable(f'{name} of Hugging Face', error) from error
    raise DataError(f'checkpoint {name} of Hugging Face has none of {", ".join(HUB_FILES)}')


def _from_url(url: str) -> Path:
    name = url.partition('?')[0].rstrip('/').rpartition('/')[2]
    # Many URLs end in the same name, such as model.safetensors.
    unique = f'{hashlib.sha256(url.encode()).hexdigest()[:12]}_{name}'
    path = Path(torch.hub.get_dir()) / 'checkpoints' / unique
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f'{path}.lock'):  # one process of a distributed run downloads, the others wait
        if not path.is_file():
            download(url, path)
    return path


def download(url: str, path: Path, progress: bool = True) -> None:
    """Downloads a file, whose content must have the hash in the URL's name, if there is one.

    Raises:
        DataError: for a download that fails or has another hash, and then there is no file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(url, str(path), hash_in_name(url), progress)
    except Exception as error:
        if 'invalid hash value' in str(error):
            raise DataError(
                f'checkpoint {url} is refused: its content does not have the hash in its name '
                f'({error}). Download it again, or from another source that you trust'
            ) from error
        raise unreachable(url, error) from error


def hash_in_name(url: str) -> str | None:
    """Returns the start of the SHA-256 of a file that its name states, None where it states none.

    Eight or more hexadecimal digits at the end, as OpenMMLab's tools and torch.hub write them, but
    no date such as 20220329.
    """
    name = url.partition('?')[0].rpartition('/')[2]
    match = re.search(r'-(?!20\d\d[01]\d[0-3]\d\.)([0-9a-f]{8,64})\.\w+$', name)
    return match and match[1]


def unreachable(name: str, error: Exception, path: str = 'path') -> DataError:
    """Returns the error for a checkpoint that has no download, saying to give a path instead."""
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return DataError(
        f'checkpoint {name} cannot be downloaded ({reason}). Without a network: download the file '
        f'elsewhere and give its {path}'
    )


def _check_archive(path: Path) -> None:
    with zipfile.ZipFile(path) as file:
        unpacked = sum(entry.file_size for entry in file.infolist())
        is_program = any(name.endswith('/constants.pkl') for name in file.namelist())
    if is_program:  # as OpenAI's CLIP is published
        raise DataError(
            f'checkpoint {path} is refused: it is a TorchScript program. If you trust it, save its '
            "weights alone: torch.save(torch.jit.load(path, 'cpu').state_dict(), 'weights.pth')"
        )
    if unpacked > MOST_UNPACKED * path.stat().st_size:
        raise DataError(
            f'checkpoint {path} is refused: its {path.stat().st_size} bytes unpack to {unpacked}, '
            'which no checkpoint does. Download it again from a source that you trust'
        )


def _relocate(weights: dict[str, Tensor], map_location: object) -> dict[str, Tensor]:
    """Returns tensors of the CPU where torch.load would have put them."""
    if map_location is None or map_location == 'cpu':
        return weights
    file = io.BytesIO()
    torch.save(weights, file)
    file.seek(0)
    return torch.load(file, map_location=map_location, weights_only=True)


def _unreadable(error: Exception) -> str:
    if match := re.search(r'GLOBAL (\S+)', str(error)):
        return (
            f'it holds {match[1]}, which is refused as it could run code. Save the weights alone: '
            'torch.save(dict(state_dict=...), path), or, if you trust it, allow that type with '
            'torch.serialization.add_safe_globals'
        )
    if match := re.search(r'^.*\bis refused\b.*$', str(error), re.MULTILINE):
        return match[0]
    return 'it is cut short, damaged or no checkpoint. Copy or download it again'
