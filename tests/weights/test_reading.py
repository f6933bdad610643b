import hashlib
from urllib.request import urlopen

import pytest
import torch
from bad_checkpoints import BAD

from kat_mm.errors import DataError
from kat_mm.weights.reading import hash_in_name, is_hub_id, read_checkpoint

WEIGHTS = {'proj.weight': torch.ones(2, 3), 'proj.bias': torch.zeros(2)}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.filterwarnings('ignore::UserWarning')
def test_programs_are_refused(tmp_path):
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / 'clip.pt')
    with pytest.raises(DataError, match=r'it is a TorchScript program.*save its weights alone: '):
        read_checkpoint(tmp_path / 'clip.pt')


def test_reads_what_torch_wrote(tmp_path):
    torch.save({'model': WEIGHTS}, tmp_path / 'a.pth')
    assert same(read_checkpoint(tmp_path / 'a.pth')['model'], WEIGHTS)


def test_reads_safetensors(tmp_path):
    safetensors = pytest.importorskip('safetensors.torch')
    safetensors.save_file(WEIGHTS, tmp_path / 'a.safetensors')
    assert same(read_checkpoint(str(tmp_path / 'a.safetensors')), WEIGHTS)


@pytest.mark.parametrize('make', BAD)
def test_bad_files(make, tmp_path, capsys):
    make(tmp_path / 'a.pth', WEIGHTS)
    with pytest.raises(DataError, match=f'a.pth {BAD[make]}'):
        read_checkpoint(tmp_path / 'a.pth')
    assert 'this ran' not in capsys.readouterr().out


def test_damaged_safetensors(tmp_path):
    pytest.importorskip('safetensors')
    (tmp_path / 'a.safetensors').write_bytes(b'\x10\0\0\0\0\0\0\0{"a": 1}')
    with pytest.raises(DataError, match=r'a.safetensors cannot be read: it is cut short'):
        read_checkpoint(tmp_path / 'a.safetensors')


@pytest.mark.parametrize(
    ('source', 'expected'),
    [
        ('hf-hub:adamdad/kat_small_patch16_224.vitft@v1', True),
        ('adamdad/kat_small_patch16_224', False),
        ('adamdad/kat_small_patch16_224.vitft', False),
        ('hf-hub:adamdad/kat_small_patch16_224', True),
        ('checkpoints/kat.pth', False),
        ('a/b/c', False),
        ('kat.safetensors', False),
        ('https://example.org/kat', False),
    ],
)
def test_hub_ids(source, expected):
    assert is_hub_id(source) == expected


def test_hub_without_a_network(monkeypatch):
    hub = pytest.importorskip('huggingface_hub')
    asked = []

    def download(name, file, revision):
        asked.append((name, file, revision))
        raise hub.errors.LocalEntryNotFoundError('Please check your connection.\nMore.')

    monkeypatch.setattr(hub, 'hf_hub_download', download)
    message = (
        r'adamdad/kat_tiny_patch16_224 of Hugging Face cannot be downloaded \(Please check your '
        r'connection\.\)\. Without a network: download the file elsewhere and give its path'
    )
    with pytest.raises(DataError, match=message):
        read_checkpoint('hf-hub:adamdad/kat_tiny_patch16_224')
    with pytest.raises(DataError, match=r'adamdad/kat_tiny_patch16_224@0123abc of Hugging Face'):
        read_checkpoint('hf-hub:adamdad/kat_tiny_patch16_224@0123abc')
    assert asked == [
        ('adamdad/kat_tiny_patch16_224', 'model.safetensors', None),
        ('adamdad/kat_tiny_patch16_224', 'model.safetensors', '0123abc'),
    ]


@pytest.mark.parametrize(
    ('source', 'hint'),
    [
        ('owner/name', 'owner/name does not exist. A repository of Hugging Face is hf-hub:owner/n'),
        ('checkpoints/kat_tiny', 'does not exist. A repository'),
        ('./owner/name', 'owner/name does not exist'),
        ('name', 'name does not exist$'),
        ('a/b/c.pth', 'a/b/c.pth does not exist$'),
        ('/a/b', '/a/b does not exist$'),
    ],
)
def test_what_has_no_scheme_never_reaches_the_network(source, hint, monkeypatch, tmp_path):
    hub = pytest.importorskip('huggingface_hub')
    monkeypatch.chdir(tmp_path)
    for module, name in ((hub, 'hf_hub_download'), (torch.hub, 'download_url_to_file')):
        monkeypatch.setattr(module, name, lambda *_, **__: pytest.fail('it asks the network'))
    with pytest.raises(DataError, match=hint):
        read_checkpoint(source)


@pytest.mark.parametrize(
    ('name', 'expected'),
    [
        ('resnet18-f37072fd.pth', 'f37072fd'),
        ('a_coco_20220329_230021-05ec7315.pth?raw=1', '05ec7315'),
        ('a-' + 64 * 'a' + '.safetensors', 64 * 'a'),
        ('a_in1k-20220304.pth', None),  # a date
        ('vit-b.pth', None),
        ('mobilenet-0.5-deadbeef.pth', 'deadbeef'),
        ('kat.pth', None),
    ],
)
def test_hashes_in_names(name, expected):
    assert hash_in_name(f'https://example.org/x-01234567.d/{name}') == expected


@pytest.mark.parametrize('is_right', [True, False])
def test_downloads_have_the_hash_in_their_name(is_right, monkeypatch, tmp_path):
    torch.save(WEIGHTS, file := tmp_path / 'weights.pth')
    digest = hashlib.sha256(file.read_bytes()).hexdigest()[:8] if is_right else '01234567'
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, 'urlopen', lambda _: urlopen(file.as_uri()))
    url = f'https://example.org/weights-{digest}.pth'
    if is_right:
        assert same(read_checkpoint(url), WEIGHTS)
        return
    with pytest.raises(
        DataError, match=r'-01234567\.pth is refused: its content does not have the'
    ):
        read_checkpoint(url)
    assert {path.suffix for path in (tmp_path / 'checkpoints').iterdir()} <= {'.lock'}


def test_hub_falls_back_to_the_other_file(monkeypatch, tmp_path):
    hub = pytest.importorskip('huggingface_hub')
    torch.save(WEIGHTS, tmp_path / 'pytorch_model.bin')

    def download(name, file, revision):
        if file == 'model.safetensors':
            raise hub.errors.EntryNotFoundError('404')
        return str(tmp_path / file)

    monkeypatch.setattr(hub, 'hf_hub_download', download)
    assert same(read_checkpoint('hf-hub:me/kat'), WEIGHTS)


def test_urls_that_end_alike_are_different_files(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path))
    downloaded = []

    def download(url, path, *_):
        torch.save({'number': torch.tensor(len(downloaded))}, path)
        downloaded.append(url)

    monkeypatch.setattr(torch.hub, 'download_url_to_file', download)
    urls = [f'https://example.org/{name}/kat.pth?raw=1' for name in ('a', 'b')]
    assert [read_checkpoint(url)['number'] for url in (*urls, *urls)] == [0, 1, 0, 1]
    assert downloaded == urls


def test_url_without_a_network(monkeypatch, tmp_path):
    def download(url, path, *_):
        raise OSError('<urlopen error timed out>')

    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, 'download_url_to_file', download)
    with pytest.raises(DataError, match=r'https://example.org/a.pth cannot be downloaded \(<url'):
        read_checkpoint('https://example.org/a.pth')


def test_unknown_scheme():
    with pytest.raises(DataError, match='must be a file, an http'):
        read_checkpoint('s3://bucket/kat.pth')
