"""Default changes of how an image looks, for tasks whose views must bear any modality."""

from ssl_med.transforms import ColourJitter, GaussianBlur, GaussianNoise, Grayscale, Solarize, Transform


def appearance(channels: int, blurred: float, solarized: float = 0.0) -> list[Transform]:
    """The published colour changes, blur and solarisation for three channels; blur and noise for any other number.

    Nothing here moves or bends values of grey images, so that Hounsfield units keep their meaning.

    Args:
        channels: of the images.
        blurred: share of the images that are blurred, by 0.1 to 2 voxels.
        solarized: share of the colour images that are solarised.
    """
    blur = GaussianBlur(sigma=(0.1, 2.0), probability=blurred)
    if channels != 3:
        return [blur, GaussianNoise(sd=(0.0, 0.1))]
    steps: list[Transform] = [ColourJitter(probability=0.8), Grayscale(0.2), blur]
    return [*steps, Solarize(probability=solarized)] if solarized else steps
