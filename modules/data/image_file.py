"""Reading of untrusted image files."""
import os
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

# Pillow warns about damaged files, which are refused anyway. Set here since threads cannot change filters safely.
warnings.filterwarnings("ignore", module=r"PIL\.")


def read(path: Path, height: int, width: int) -> np.ndarray:
    """Read a PNG (or JPEG) file as uint8 (height, width, 3), resized by torchvision's ``resize`` of a PIL image.

    Palette and grey images become RGB; of 16 bits per channel the upper 8 are kept. An image that its metadata declare
    to be rotated is turned upright, as viewers show it.

    Raises
    ------
    ValueError : the file is missing, not such an image, truncated, partly transparent, or claims an absurd size.
    """
    if os.path.exists(path) and not os.path.isfile(path):  # reading a pipe would wait for a writer
        raise ValueError(f"{path}: not a regular file; replace or remove it")
    try:
        # No other formats, whatever the name: Pillow passes some of them to external programs.
        with Image.open(path, formats=("PNG", "JPEG")) as file:
            if file.width * file.height > Image.MAX_IMAGE_PIXELS:
                raise Image.DecompressionBombError  # Pillow only warns, up to twice this size
            ImageOps.exif_transpose(file, in_place=True)
            is_opaque = not file.has_transparency_data or file.convert("RGBA").getchannel("A").getextrema()[0] == 255
            image = _to_rgb(file)
    except Image.DecompressionBombError as error:
        raise ValueError(f"{path}: it claims more than {Image.MAX_IMAGE_PIXELS:,} pixels; replace the file") from error
    except (FileNotFoundError, PermissionError) as error:
        raise ValueError(f"{path}: it cannot be read ({error.strerror}); add it or fix its permissions") from error
    except UnidentifiedImageError as error:
        raise ValueError(f"{path}: not a PNG image, despite its name; replace or remove it") from error
    except MemoryError:
        raise
    except Exception as error:  # damaged bytes can raise anything in the decoder
        raise ValueError(f"{path}: the image is damaged or truncated ({' '.join(str(error).split())[:80]}); replace or "
                         "remove the file") from error
    if not is_opaque:
        raise ValueError(f"{path}: it has transparent pixels, whose colour is undefined; save it without transparency")
    if image.size != (width, height):
        from torchvision.transforms.functional import resize  # takes more than a second to import, and is rarely needed
        image = resize(image, [height, width])
    return np.asarray(image)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow's conversion would clip at 255
        image = Image.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8))
    return image.convert("RGB")
