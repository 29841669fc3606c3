"""Pictures of what a network sees and of the spatial filters it predicts, taken during passes that happen anyway."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from torchvision.utils import make_grid

from ddf import DDFPack

Show = Callable[[str, Tensor], object]  # a name, and a picture (3, H, W) in [0, 1]

_INPUTS = 16
_FILTERED = 4
_MOST_TAPS = 25
_SIDE = 56  # least height of a map in pixels


@contextmanager
def inputs_shown(module: nn.Module, mean: Sequence[float], std: Sequence[float], show: Show) -> Iterator[None]:
    """Shows the first images (B, C, H, W) that the module is given meanwhile, as they were before normalisation."""

    def look(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        handle.remove()
        show('inputs', make_grid(_denormalised(arguments[0][:_INPUTS], mean, std), nrow=4))

    handle = module.register_forward_pre_hook(look)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def filters_shown(model: nn.Module, mean: Sequence[float], std: Sequence[float], show: Show) -> Iterator[None]:
    """Shows the spatial filters of the first, middle and last DDFPack for the first images the model is given.

    A row per image: the image, the filter's L2 norm over its taps (bright is large), then the taps (red is positive,
    blue negative), of the first head.
    """
    images: list[Tensor] = []
    packs = [(name, module) for name, module in model.named_modules() if isinstance(module, DDFPack)]
    chosen = dict(packs[index] for index in (0, len(packs) // 2, -1)) if packs else {}
    with ExitStack() as stack:

        def watch(module: nn.Module, look: Callable[[Tensor], object]) -> None:
            def hook(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
                handle.remove()
                look(arguments[0][:_FILTERED])

            handle = module.register_forward_pre_hook(hook)
            stack.callback(handle.remove)

        def draw(name: str, pack: DDFPack, x: Tensor) -> None:
            with torch.no_grad():
                show(f'spatial filters/{name}', _filter_picture(images[0], pack.filters(x)[1], pack.kernel_size**2))

        watch(model, lambda x: images.append(_denormalised(x, mean, std)))
        for name, pack in chosen.items():
            watch(pack, lambda x, name=name, pack=pack: draw(name, pack, x))  # type: ignore[misc]
        yield


def _denormalised(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """RGB in [0, 1], (B, 3, H, W), on the CPU, of normalised images with 1 or 3 channels."""
    shape = (1, -1, 1, 1)
    images = images.detach().float().cpu() * torch.tensor(std).view(shape) + torch.tensor(mean).view(shape)
    return images.clamp(0, 1).expand(-1, 3, -1, -1)


def _filter_picture(images: Tensor, filters: Tensor, taps: int) -> Tensor:
    """(3, H, W) of images (B, 3, H, W) and filters (B, head * taps, Ho, Wo)."""
    filters = filters[:, :taps].float().cpu()  # (B, taps, Ho, Wo)
    side = max(_SIDE, images.shape[-2], filters.shape[-2])
    norm = filters.norm(dim=1, keepdim=True)
    norm = (norm - norm.amin()) / (norm.amax() - norm.amin()).clamp(min=1e-6)
    signed = (filters[:, :_MOST_TAPS] / filters.abs().amax().clamp(min=1e-6) + 1) / 2
    maps = torch.cat([_coloured(norm, 'viridis'), _coloured(signed, 'seismic')], dim=1)  # (B, 1 + taps, 3, Ho, Wo)
    columns = torch.cat(
        [_resized(images, side)[:, None], _resized(maps.flatten(0, 1), side).unflatten(0, maps.shape[:2])], 1
    )
    return make_grid(columns.flatten(0, 1), nrow=columns.shape[1], pad_value=1.0)


def _coloured(maps: Tensor, colours: str) -> Tensor:
    """(B, N, H, W) in [0, 1] to (B, N, 3, H, W)."""
    import matplotlib  # here, as in curves.py

    rgb = matplotlib.colormaps[colours](maps.numpy())[..., :3]
    return torch.from_numpy(rgb).float().movedim(-1, 2)


def _resized(maps: Tensor, side: int) -> Tensor:
    height, width = maps.shape[-2:]
    return nn.functional.interpolate(maps, size=(side, max(1, round(side * width / height))), mode='nearest')
