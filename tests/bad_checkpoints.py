"""Makers of files that are no checkpoints, or that do harm, and what the errors say of them."""

import zipfile

import torch


class Harm:
    def __reduce__(self):
        return print, ('this ran',)


def cut(path, state):
    torch.save(state, path)
    path.write_bytes(path.read_bytes()[:-200])


def code(path, state):
    torch.save({'state_dict': state, 'hook': Harm()}, path)


def old_code(path, state):
    torch.save(Harm(), path, _use_new_zipfile_serialization=False)


def bomb(path, state):
    torch.save(state, path)
    with zipfile.ZipFile(path, 'a', zipfile.ZIP_DEFLATED) as file:
        file.writestr('archive/data/999', bytes(10**8))


def page(path, state):
    path.write_text('<html>')


def folder(path, state):
    path.mkdir()


def nothing(path, state):
    pass


BAD = {
    cut: 'cannot be read: it is cut short, damaged or no checkpoint. Copy or download it again',
    code: 'cannot be read: it holds .*print, which is refused as it could run code',
    old_code: 'cannot be read: it holds .*print, which is refused as it could run code',
    bomb: r'is refused: its \d+ bytes unpack to 10\d{7}, which no checkpoint does',
    page: 'cannot be read: it is cut short',
    folder: 'is a folder: name the file in it',
    nothing: 'does not exist',
}
