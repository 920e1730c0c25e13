"""Fully convolutional nets: a trunk, score layers, skips and upsampling (sections 3 and 4)."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fcn.errors import UserError
from fcn.nets.geometry import Geometry, bilinear_kernel_size, cells_after, through
from fcn.nets.trunks import Trunk, build_trunk
from fcn.nets.upsample import Upsample

IMAGE = Geometry()
SUFFIXES = {"semantic": "_sem", "geometric": "_geo"}  # the authors' names in their SIFT Flow nets


class Scale(nn.Module):
    """Caffe's Scale layer with one fixed number (the at-once net, section 4.3 of PAMI)."""

    scale: Tensor

    def __init__(self, value: float) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor([value]))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale.to(x.dtype)


class Head(nn.Module):
    """Score layers for one label set: score the top, upsample, add the skips, upsample to pixels.

    Layer names are the authors': ``score_fr``, ``upscore2``, ``score_pool4``, ``upscore_pool4``,
    ``upscore8``; with several heads they carry a suffix.
    """

    def __init__(
        self,
        net: dict[str, Any],
        trunk: Trunk,
        geometries: dict[str, Geometry],
        classes: int,
        suffix: str,
    ) -> None:
        super().__init__()
        top = net["top"] or trunk.top
        self.top = top
        self.suffix = suffix
        self.extend = 1 if net["padding"] == "tight" else 0
        self.steps: list[tuple[str, str, int]] = []  # skip, name of its upsampling, crop offset
        learned = net["interpolation"] == "learned"
        truncated = top != trunk.top
        self.first = f"score_{top}" if truncated else "score_fr"
        self.add_module(self.first + suffix, self._score(trunk.taps[top], classes, net))
        geometry = geometries[top]
        below = ""
        for skip in net["skips"]:
            target = geometries[skip]
            factor = int(geometry.stride / target.stride)
            if factor < 2:
                raise UserError(
                    f"net: skip {skip} has stride {target.stride}, the map above it "
                    f"{geometry.stride}; list the skips from coarse to fine."
                )
            geometry = geometry.extended(self.extend)
            kernel = bilinear_kernel_size(geometry, factor, target)
            name = f"upscore_{below}" if below else f"upscore{factor}"
            self.add_module(name + suffix, Upsample(classes, kernel, factor, learned))
            up = geometry.upsampled(kernel, factor)
            if skip in net["scales"]:
                self.add_module(f"scale_{skip}{suffix}", Scale(net["scales"][skip]))
            self.add_module(f"score_{skip}{suffix}", self._score(trunk.taps[skip], classes, net))
            # The skip is cropped to the upsampled map where it is larger (reference padding), the
            # upsampled map to the skip where that is larger (tight padding).
            offset = target.offset_of(up)
            self.steps.append((skip, name + suffix, offset))
            geometry = up if offset > 0 else target
            below = skip
        factor = int(geometry.stride)
        geometry = geometry.extended(self.extend)
        kernel = bilinear_kernel_size(geometry, factor, IMAGE)
        self.last = ("upscore" if not net["skips"] else f"upscore{factor}") + suffix
        self.add_module(self.last, Upsample(classes, kernel, factor, learned=False))
        self.offset = geometry.upsampled(kernel, factor).offset_of(IMAGE)
        self.cells = geometries[top]
        if self.offset < 0:
            raise UserError(
                "net: the padding is too small for the upsampled map to cover the image."
            )

    @staticmethod
    def _score(channels: int, classes: int, net: dict[str, Any]) -> nn.Conv2d:
        score = nn.Conv2d(channels, classes, 1)
        nn.init.zeros_(score.bias)  # type: ignore[arg-type]
        if net["score_init"] == "zero":
            nn.init.zeros_(score.weight)
        else:
            nn.init.normal_(score.weight, std=0.01)
        return score

    def _extended(self, x: Tensor) -> Tensor:
        """Tight padding: scores beyond the border repeat the border's, as in image resizing."""
        return F.pad(x, (self.extend,) * 4, mode="replicate") if self.extend else x

    def forward(self, features: dict[str, Tensor], size: tuple[int, int]) -> Tensor:
        """(N, classes, H, W) scores at the image's own ``size``."""
        layers = dict(self.named_children())
        x = layers[self.first + self.suffix](features[self.top])
        for skip, name, offset in self.steps:
            skipped = features[skip]
            scale = layers.get(f"scale_{skip}{self.suffix}")
            if scale is not None:
                skipped = scale(skipped)
            up = layers[name]
            assert isinstance(up, Upsample)
            score = layers[f"score_{skip}{self.suffix}"]
            x = self._extended(x)
            if offset > 0:
                size_up = (up.size(x.shape[2]), up.size(x.shape[3]))
                window = skipped[:, :, offset : offset + size_up[0], offset : offset + size_up[1]]
                x = up(x, (0, 0), size_up) + score(window)
            else:
                x = up(x, (-offset, -offset), tuple(skipped.shape[2:])) + score(skipped)
        x = self._extended(x)
        return layers[self.last](x, (self.offset, self.offset), size)


class FCN(nn.Module):
    """A fully convolutional net for one image input and one or more label sets."""

    def __init__(self, net: dict[str, Any], classes: dict[str, int]) -> None:
        super().__init__()
        self.trunk = build_trunk(net, channels=3)
        known = list(self.trunk.taps)
        for name in [net["top"] or self.trunk.top, *net["skips"]]:
            if name not in known:
                raise UserError(
                    f"net: {net['architecture']} has no feature {name!r}; it has: "
                    f"{', '.join(known)}."
                )
        geometries: dict[str, Geometry] = {}
        geometry = IMAGE
        for name, layer in self.trunk.layers.named_children():
            geometry = through(geometry, layer)
            geometries[name] = geometry
        self.geometries = geometries
        self.wanted = frozenset([net["top"] or self.trunk.top, *net["skips"]])
        self._drop_unused(net["top"] or self.trunk.top)
        self.least = 1  # pixels a side
        while cells_after(self.least, self.trunk.layers) < 1:
            self.least += 1
        self.heads = nn.ModuleDict(
            {
                task: Head(
                    net, self.trunk, geometries, n, SUFFIXES[task] if len(classes) > 1 else ""
                )
                for task, n in classes.items()
            }
        )

    def _drop_unused(self, top: str) -> None:
        """A truncated net ends at its top: later layers are not part of it."""
        names = [name for name, _ in self.trunk.layers.named_children()]
        for name in names[names.index(top) + 1 :]:
            delattr(self.trunk.layers, name)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Scores per label set.

        Args:
            image: (N, 3, H, W) float, preprocessed for the backbone.

        Returns:
            label set -> (N, classes, H, W) float32.

        Raises:
            UserError: an image smaller than ``least`` pixels a side (tight padding).
        """
        size = (image.shape[2], image.shape[3])
        if min(size) < self.least:
            raise UserError(
                f"an image of {size[1]}x{size[0]} pixels is too small for this net, which needs "
                f"{self.least} a side; enlarge it, or use padding: reference."
            )
        features = self.trunk(image, self.wanted)
        return {task: head(features, size) for task, head in self.heads.items()}

    def head(self, task: str) -> Head:
        """The score layers of one label set."""
        head = self.heads[task]
        assert isinstance(head, Head)
        return head

    def exact(self, on: bool = True) -> "FCN":
        """Compute fixed upsampling as the authors' layers do: transposed convolution, then crop."""
        for module in self.modules():
            if isinstance(module, Upsample):
                module.exact = on
        return self
