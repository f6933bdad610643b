"""An image loader that refuses corrupt files by name."""

from mmcv.transforms import LoadImageFromFile
from mmengine.registry import TRANSFORMS

from ..errors import DataError


@TRANSFORMS.register_module()
class LoadCheckedImage(LoadImageFromFile):
    """Loads an image as mm's LoadImageFromFile does, and names a file that is not whole.

    OpenCV before version 5 fills the rest of a truncated JPEG with grey and says nothing, so images
    are decoded with Pillow by default. Takes LoadImageFromFile's arguments.

    Raises:
        DataError: for a file that is missing or cannot be decoded completely.
    """

    def __init__(self, *args, imdecode_backend: str = 'pillow', **kwargs):
        super().__init__(*args, imdecode_backend=imdecode_backend, **kwargs)

    def transform(self, results: dict) -> dict | None:
        try:
            return super().transform(results)
        except Exception as error:  # damaged files fail in many ways
            reason = ' '.join(str(error).split())
            raise DataError(f'image {results["img_path"]} cannot be read: {reason}') from error
