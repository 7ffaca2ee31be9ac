"""The bundled net as an upsampler: exact under tiling at any scale, better than Lanczos, grey stays grey."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from dino_ray.errors import UsageError
from dino_ray.plan.geometry import Rect, Scaling
from dino_ray.upsample import Lanczos, base_tile, load_net
from dino_ray.upsample.net import BaseNet, NetUpsampler, read_net, save_net


@pytest.fixture(scope="module")
def nets():
    torch.set_num_threads(1)
    return load_net()


@pytest.fixture(params=[False, True], ids=["clean", "worn"])
def net(nets, request):
    return nets.suited(request.param)


def replicating(image):
    def read(rect):
        rows = np.clip(np.arange(rect.y, rect.y1), 0, image.shape[0] - 1)
        cols = np.clip(np.arange(rect.x, rect.x1), 0, image.shape[1] - 1)
        return image[rows[:, None], cols[None, :]]

    return read


def drawing(side=192):
    """Smooth-edged figures, drawn large and reduced."""
    image = Image.new("RGB", (side * 4, side * 4), (90, 120, 150))
    draw = ImageDraw.Draw(image)
    rng = np.random.default_rng(3)
    for _ in range(60):
        x, y, r = (int(v) for v in rng.integers(0, side * 4, 3))
        colour = tuple(int(v) for v in rng.integers(0, 255, 3))
        draw.ellipse([x, y, x + r // 4 + 8, y + r // 6 + 8], fill=colour)
    return np.asarray(image.resize((side, side), Image.Resampling.BOX))


def psnr(a, b, border=8):
    error = (a - b)[border:-border, border:-border]
    return -10 * np.log10(np.mean(error**2))


@pytest.mark.parametrize("scale", [1.5, 2, 3, 4])
def test_a_tile_is_the_crop_of_the_whole(net, scale):
    image = np.random.default_rng(0).random((23, 31, 3), np.float32)
    scaling = Scaling.from_factor(31, 23, scale)
    read = replicating(image)
    whole = base_tile(read, Rect(0, 0, scaling.canvas_w, scaling.canvas_h), scaling, net)
    for rect in (Rect(0, 0, 16, 16), Rect(13, 7, 21, 9), Rect(scaling.canvas_w - 11, 5, 11, 17)):
        np.testing.assert_allclose(base_tile(read, rect, scaling, net), whole[rect.slices], atol=1e-5)


def test_it_is_better_than_lanczos(net):
    truth = drawing()
    half = Image.fromarray(truth).resize((96, 96), Image.Resampling.BICUBIC)
    read, scaling = replicating(np.asarray(half)), Scaling(96, 96, 192, 192)
    made, plain = (base_tile(read, Rect(0, 0, 192, 192), scaling, up) for up in (net, Lanczos()))
    goal = truth / np.float32(255)
    assert psnr(made, goal) > psnr(plain, goal) + 1.0


def test_each_net_is_better_at_its_own_kind_of_source(nets):
    truth = drawing()
    half = np.asarray(Image.fromarray(truth).resize((96, 96), Image.Resampling.BICUBIC))
    rng = np.random.default_rng(0)
    noisy = np.clip(np.rint(half + rng.normal(0, 5, half.shape)), 0, 255).astype(np.uint8)
    scaling, rect = Scaling(96, 96, 192, 192), Rect(0, 0, 192, 192)

    def quality(source, up):
        return psnr(base_tile(replicating(source), rect, scaling, up), truth / 255)

    clean, worn = nets.suited(False), nets.suited(True)
    assert quality(half, clean) > quality(half, worn)
    assert quality(noisy, worn) > quality(noisy, clean)
    assert isinstance(Lanczos().suited(True), Lanczos)


def test_reducing_is_lanczos(net):
    image = np.random.default_rng(1).random((40, 40, 3), np.float32)
    scaling = Scaling(40, 40, 20, 20)
    rect = Rect(0, 0, 20, 20)
    made, plain = (base_tile(replicating(image), rect, scaling, up) for up in (net, Lanczos()))
    np.testing.assert_array_equal(made, plain)


def test_grey_goes_through_the_net_as_its_three_equal_colours(net):
    # Not up to black and white: there colours are clipped each for itself, grey as a whole.
    grey = np.random.default_rng(2).integers(80, 176, (20, 20, 1), np.uint8)
    scaling, rect = Scaling(20, 20, 40, 40), Rect(0, 0, 40, 40)
    made = base_tile(replicating(grey), rect, scaling, net)
    colours = base_tile(replicating(np.repeat(grey, 3, axis=2)), rect, scaling, net)
    assert made.shape == (40, 40, 1)
    np.testing.assert_allclose(made[..., 0], colours.mean(axis=2), atol=0.01)


@pytest.mark.parametrize("bands", [2, 4])
def test_alpha_is_resampled_by_lanczos_whatever_enlarges_the_colours(net, bands):
    image = np.random.default_rng(4).random((12, 12, bands), np.float32)
    scaling, rect = Scaling(12, 12, 24, 24), Rect(0, 0, 24, 24)
    made, plain = (base_tile(replicating(image), rect, scaling, up) for up in (net, Lanczos()))
    np.testing.assert_array_equal(made[..., -1], plain[..., -1])
    assert np.abs(made[..., 0] - plain[..., 0]).max() > 0.01


def test_16_bits_are_of_full_range(net):
    white = np.full((8, 8, 3), 65535, np.uint16)
    made = base_tile(replicating(white), Rect(0, 0, 16, 16), Scaling(8, 8, 16, 16), Lanczos())
    np.testing.assert_allclose(made, 1, atol=1e-6)


def test_the_halo_is_as_far_as_the_net_looks():
    torch.manual_seed(0)
    net = BaseNet(width=8, blocks=2)
    torch.nn.init.normal_(net.tail.weight, std=0.1)
    upsampler = NetUpsampler(net.eval(), torch.device("cpu"))
    image = 0.4 + 0.2 * np.random.default_rng(5).random((40, 40, 3), np.float32)
    scaling, rect = Scaling(40, 40, 80, 80), Rect(40, 40, 1, 1)
    before = base_tile(replicating(image), rect, scaling, upsampler)
    window = scaling.source_window(rect, net.reach)
    image[: window.y - 1], image[window.y1 + 1 :] = 0, 1
    np.testing.assert_array_equal(base_tile(replicating(image), rect, scaling, upsampler), before)
    image[20 + net.reach - 1] = 0
    assert (base_tile(replicating(image), rect, scaling, upsampler) != before).any()


def test_a_tight_net_computes_the_same_without_what_is_cut_off():
    torch.manual_seed(2)
    net = BaseNet(width=8, blocks=2)
    torch.nn.init.normal_(net.tail.weight, std=0.1)
    x, cut = torch.rand(1, 3, 30, 26), 2 * net.reach
    padded = net(x)
    net.tighten()
    torch.testing.assert_close(net(x), padded[:, :, cut:-cut, cut:-cut], atol=1e-6, rtol=0)


@pytest.mark.parametrize("ways", [(0, 1, 2, 3), tuple(range(8)), (0, 5)])
def test_a_net_that_is_asked_in_several_ways_answers_a_turned_image_alike(ways):
    torch.manual_seed(0)
    net = BaseNet(width=8, blocks=2)
    torch.nn.init.normal_(net.tail.weight, std=0.1)
    upsampler = NetUpsampler(net.eval(), torch.device("cpu"), ways=ways)
    image = 0.4 + 0.2 * np.random.default_rng(5).random((20, 26, 3), np.float32)

    def enlarged(pixels):
        h, w = pixels.shape[:2]
        return base_tile(
            replicating(pixels), Rect(0, 0, 2 * w, 2 * h), Scaling(w, h, 2 * w, 2 * h), upsampler
        )

    def turned(pixels):  # by what the two ways differ, or the four
        return pixels[::-1, ::-1].transpose(1, 0, 2) if ways == (0, 5) else np.rot90(pixels)

    np.testing.assert_allclose(enlarged(turned(image)), turned(enlarged(image)), atol=1e-5)
    alone = NetUpsampler(net, torch.device("cpu"))
    scaling, rect = Scaling(26, 20, 52, 40), Rect(0, 0, 52, 40)
    assert np.abs(base_tile(replicating(image), rect, scaling, alone) - enlarged(image)).max() > 1e-3


def test_saved_weights_come_back(tmp_path):
    torch.manual_seed(1)
    net = BaseNet(width=8, blocks=1)
    torch.nn.init.normal_(net.tail.weight)
    save_net(net, tmp_path / "net.safetensors")
    x = torch.rand(1, 3, 9, 9)
    assert torch.equal(read_net(tmp_path / "net.safetensors")(x), net(x))


def test_what_is_no_net_is_refused_by_name(tmp_path):
    path = tmp_path / "net.safetensors"
    with pytest.raises(UsageError, match=r"net\.safetensors.*train_bundled"):
        read_net(path)
    path.write_bytes(b"nonsense")
    with pytest.raises(UsageError, match=r"net\.safetensors.*train_bundled"):
        read_net(path)
