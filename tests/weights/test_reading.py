import pytest
import torch
from bad_checkpoints import BAD

from kat_mm.errors import DataError
from kat_mm.weights.reading import is_hub_id, read_checkpoint

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
        ('adamdad/kat_small_patch16_224', True),
        ('adamdad/kat_small_patch16_224.vitft', True),
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

    def download(name, file):
        asked.append((name, file))
        raise hub.errors.LocalEntryNotFoundError('Please check your connection.\nMore.')

    monkeypatch.setattr(hub, 'hf_hub_download', download)
    message = (
        r'adamdad/kat_tiny_patch16_224 of Hugging Face cannot be downloaded \(Please check your '
        r'connection\.\)\. Without a network: download the file elsewhere and give its path'
    )
    with pytest.raises(DataError, match=message):
        read_checkpoint('hf-hub:adamdad/kat_tiny_patch16_224')
    assert asked == [('adamdad/kat_tiny_patch16_224', 'model.safetensors')]


def test_hub_falls_back_to_the_other_file(monkeypatch, tmp_path):
    hub = pytest.importorskip('huggingface_hub')
    torch.save(WEIGHTS, tmp_path / 'pytorch_model.bin')

    def download(name, file):
        if file == 'model.safetensors':
            raise hub.errors.EntryNotFoundError('404')
        return str(tmp_path / file)

    monkeypatch.setattr(hub, 'hf_hub_download', download)
    assert same(read_checkpoint('me/kat'), WEIGHTS)


def test_urls_that_end_alike_are_different_files(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path))
    downloaded = []

    def download(url, path):
        torch.save({'number': torch.tensor(len(downloaded))}, path)
        downloaded.append(url)

    monkeypatch.setattr(torch.hub, 'download_url_to_file', download)
    urls = [f'https://example.org/{name}/kat.pth?raw=1' for name in ('a', 'b')]
    assert [read_checkpoint(url)['number'] for url in (*urls, *urls)] == [0, 1, 0, 1]
    assert downloaded == urls


def test_url_without_a_network(monkeypatch, tmp_path):
    def download(url, path):
        raise OSError('<urlopen error timed out>')

    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, 'download_url_to_file', download)
    with pytest.raises(DataError, match=r'https://example.org/a.pth cannot be downloaded \(<url'):
        read_checkpoint('https://example.org/a.pth')


def test_unknown_scheme():
    with pytest.raises(DataError, match='must be a file, an http'):
        read_checkpoint('s3://bucket/kat.pth')
