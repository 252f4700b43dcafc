"""The patch critic: what its logits see; the decoder's last layer."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import conv_transpose2d

from dtrain.nets.dcgan import PatchCritic, ToPixels, receptive_field

PATCHES = [((1, 28, 28), 1, 16), ((3, 32, 32), 1, 16), ((3, 64, 64), 2, 34), ((3, 128, 128), 3, 70)]


@pytest.mark.parametrize(("shape", "strides", "field"), PATCHES)
def test_a_logit_sees_its_patch_and_no_pixel_beside_it(shape: tuple[int, int, int], strides: int, field: int) -> None:
    critic = PatchCritic(shape, 2, strides).double().eval()
    assert receptive_field(critic.body) == field < shape[1]
    x = torch.randn(1, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    logits = critic(x.requires_grad_())
    middle = logits.shape[2] // 2
    (gradient,) = torch.autograd.grad(logits[0, 0, middle, middle], x)
    rows = gradient[0].abs().amax((0, 2)).nonzero().flatten()
    assert int(rows.max() - rows.min()) + 1 == len(rows) == field
    with torch.no_grad():
        for row, same in ((int(rows.min()) - 1, True), (int(rows.min()), False), (int(rows.max()) + 1, True)):
            other = x.detach().clone()
            other[0, :, row, int(rows.min()) : int(rows.max())] += 1
            assert torch.equal(critic(other)[0, 0, middle, middle], logits[0, 0, middle, middle]) is same


def test_a_patch_as_large_as_the_image_is_refused() -> None:
    with pytest.raises(ValueError, match="34 pixels"):
        PatchCritic((1, 28, 28), 2, 2)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_layer_to_pixels_is_a_transposed_convolution(channels: int) -> None:
    generator = torch.Generator().manual_seed(0)
    layer = ToPixels(5, channels).double()
    x = torch.randn(3, 5, 4, 6, dtype=torch.float64, generator=generator, requires_grad=True)
    y = layer(x)
    expected = conv_transpose2d(x, layer.weight, layer.bias, stride=2, padding=1)
    assert y.shape == (3, channels, 8, 12)
    torch.testing.assert_close(y, expected)
    seed = torch.randn(y.shape, dtype=torch.float64, generator=generator)
    inputs = [x, layer.weight, layer.bias]
    ours = torch.autograd.grad(y, inputs, seed, create_graph=True)
    theirs = torch.autograd.grad(expected, inputs, seed, create_graph=True)
    torch.testing.assert_close(ours, theirs)
    twice = [torch.autograd.grad(g[0].square().sum(), inputs[1])[0] for g in (ours, theirs)]
    torch.testing.assert_close(*twice)
