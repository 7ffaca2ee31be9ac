from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch import Tensor

from dino_ray.diffusion.denoiser import Conditioning, stacked
from dino_ray.diffusion.sampler import METHODS, sample, step

NOTHING = Conditioning()


class Flow:
    """Only what a sampler calls: x0 as a function of latents and noise level."""

    def __init__(self, x0):
        self.x0 = x0
        self.calls: list[float] = []

    def sampling(self):
        return nullcontext()

    def predict(self, x: Tensor, sigma: float, conditioning: Conditioning) -> Tensor:
        self.calls.append(sigma)
        return self.x0(x, sigma)


def gaussian(variance: float) -> Flow:
    """Exact posterior mean of N(0, variance) data under x = (1 - sigma) x0 + sigma noise."""

    def x0(x: Tensor, sigma: float) -> Tensor:
        keep = 1 - sigma
        return x * keep * variance / (keep**2 * variance + sigma**2)

    return Flow(x0)


def exact_end(x: Tensor, sigma: float, variance: float) -> Tensor:
    """Where the probability flow of ``gaussian`` takes x: the marginal at sigma is scaled to the data's."""
    return x * (variance / ((1 - sigma) ** 2 * variance + sigma**2)) ** 0.5


def error(method: str, steps: int) -> float:
    x = torch.tensor([[[[1.5]]]], dtype=torch.float64)
    sigmas = torch.linspace(0.8, 0, steps + 1, dtype=torch.float64)
    end = sample(gaussian(0.3), x, sigmas, NOTHING, method)
    return float((end - exact_end(x, 0.8, 0.3)).abs())


def test_heun_is_second_order_on_a_gaussian():
    ratios = [error("heun", n) / error("heun", 2 * n) for n in (16, 32, 64)]
    assert all(3.6 < ratio < 4.6 for ratio in ratios), ratios


def test_euler_is_first_order_on_a_gaussian():
    ratios = [error("euler", n) / error("euler", 2 * n) for n in (16, 32, 64)]
    assert all(1.8 < ratio < 2.3 for ratio in ratios), ratios


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_a_straight_path_is_followed_exactly_however_many_steps(method, steps):
    clean = torch.tensor([[[[0.25, -2.0]]]])
    noisy = torch.tensor([[[[1.0, 0.5]]]])
    end = sample(Flow(lambda x, sigma: clean), noisy, torch.linspace(0.5, 0, steps + 1), NOTHING, method)
    torch.testing.assert_close(end, clean, rtol=0, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_the_last_step_ends_on_the_predicted_x0_itself(method):
    answer = torch.randn(1, 2, 3, 3)
    assert torch.equal(
        step(Flow(lambda x, sigma: answer), torch.randn(1, 2, 3, 3), 0.4, 0.0, NOTHING, method), answer
    )


def test_euler_calls_once_and_heun_twice_a_step_except_to_zero():
    sigmas = torch.tensor([0.75, 0.5, 0.25, 0.0])
    calls = {}
    for method in METHODS:
        flow = gaussian(1.0)
        sample(flow, torch.ones(1, 1, 1, 1), sigmas, NOTHING, method)
        calls[method] = flow.calls
    assert calls == {"euler": [0.75, 0.5, 0.25], "heun": [0.75, 0.5, 0.5, 0.25, 0.25]}


@pytest.mark.parametrize("method", METHODS)
def test_steps_taken_one_by_one_are_the_sample(method):
    x = torch.randn(2, 1, 4, 4)
    sigmas = torch.tensor([0.6, 0.3, 0.1, 0.0])
    one_by_one = x
    for sigma, to in [(0.6, 0.3), (0.3, 0.1), (0.1, 0.0)]:
        sigma, to = (float(torch.tensor(level)) for level in (sigma, to))
        one_by_one = step(
            gaussian(0.5), one_by_one, sigma, to, NOTHING, method
        )  # a fresh denoiser every time
    assert torch.equal(sample(gaussian(0.5), x, sigmas, NOTHING, method), one_by_one)


def test_a_callback_stops_between_steps_before_the_model_runs():
    class Cancelled(Exception):
        pass

    flow = gaussian(1.0)
    seen = []

    def before_step(i: int) -> None:
        seen.append(i)
        if i == 2:
            raise Cancelled

    with pytest.raises(Cancelled):
        sample(flow, torch.ones(1, 1, 1, 1), torch.linspace(0.5, 0, 6), NOTHING, before_step=before_step)
    assert seen == [0, 1, 2]
    assert len(flow.calls) == 2


def test_each_prediction_can_be_amended_before_it_is_used() -> None:
    heard: list[float] = []

    def amend(x0: Tensor, sigma: float) -> Tensor:
        heard.append(sigma)
        return torch.full_like(x0, 0.25)

    for method, calls in (("euler", 3), ("heun", 5)):
        heard.clear()
        x = torch.randn(1, 2, 4, 4)
        made = sample(
            gaussian(1.0), x, torch.tensor([0.6, 0.4, 0.2, 0.0]), Conditioning(), method, amend=amend
        )
        torch.testing.assert_close(made, torch.full_like(x, 0.25))
        assert len(heard) == calls
        assert heard[0] == pytest.approx(0.6)


def test_prompts_of_other_lengths_are_stacked_where_masks_tell_what_counts():
    short = {"words": torch.ones(1, 2, 4), "words_mask": torch.ones(1, 2), "pooled": torch.zeros(1, 3)}
    long = {"words": 2 * torch.ones(1, 5, 4), "words_mask": torch.ones(1, 5), "pooled": torch.ones(1, 3)}
    both = stacked([short, long])
    assert both["words"].shape == (2, 5, 4)
    assert both["words_mask"].tolist() == [[1, 1, 0, 0, 0], [1] * 5]
    assert torch.equal(both["words"][0, :2], short["words"][0])
    assert not both["words"][0, 2:].any()
    assert torch.equal(both["pooled"], torch.tensor([[0.0] * 3, [1.0] * 3]))
    with pytest.raises(ValueError, match="no mask"):
        stacked([{"words": short["words"]}, {"words": long["words"]}])
