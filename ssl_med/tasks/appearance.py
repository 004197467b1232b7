"""Default changes of how an image looks, for tasks whose views must bear any modality."""

from ssl_med.transforms import ColourJitter, GaussianBlur, GaussianNoise, Grayscale, Solarize, Transform


def appearance(channels: int, spatial_dims: int, blurred: float = 0.5, solarized: float = 0.0) -> list[Transform]:
    """The published colour changes, blur and solarisation for RGB pictures; blur and noise for everything else.

    Pictures of three channels count as RGB, volumes never. Without colour nothing here moves or bends values, so that
    Hounsfield units keep their meaning. Nothing tells three windows of a CT slice from RGB: give such a task ``views``.

    Args:
        channels: of the images.
        spatial_dims: 2 for pictures, 3 for volumes.
        blurred: share of the images that are blurred, by 0.1 to 2 voxels.
        solarized: share of the colour images that are solarised.
    """
    blur = GaussianBlur(sigma=(0.1, 2.0), probability=blurred)
    if (channels, spatial_dims) != (3, 2):
        return [blur, GaussianNoise(sd=(0.0, 0.1))]
    steps: list[Transform] = [ColourJitter(probability=0.8), Grayscale(0.2), blur]
    return [*steps, Solarize(probability=solarized)] if solarized else steps
