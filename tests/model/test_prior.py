"""Tests of the prior's network: its inputs, its initial output, and the scale of embeddings."""

import torch
from torch.nn.functional import cosine_similarity

from gen1_train.model.prior import PriorConfig, PriorNetwork, Scale

CONFIG = PriorConfig(width=32, layers=2, heads=4)


def trained_network() -> PriorNetwork:
    """Builds a network with a nonzero output, as after a step."""
    torch.manual_seed(0)
    network = PriorNetwork(CONFIG, dim=16)
    torch.nn.init.normal_(network.out.weight)
    return network


def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    return torch.randn(5, 16), torch.tensor([0, 10, 500, 900, 999]), torch.randn(5, 16)


def test_an_untrained_network_predicts_the_mean_image_embedding() -> None:
    network = PriorNetwork(CONFIG, dim=16)
    network.images.fit(3 + torch.randn(100, 16))
    x = network(*inputs())
    assert torch.equal(x, torch.zeros(5, 16))
    mean = network.images.mean.expand(5, -1)
    torch.testing.assert_close(cosine_similarity(network.images.embeddings(x), mean), torch.ones(5))


def test_the_output_depends_on_every_input_except_a_dropped_text() -> None:
    network, (z, timesteps, texts) = trained_network(), inputs()
    x = network(z, timesteps, texts)
    assert x.shape == (5, 16)
    others = network(z + 1, timesteps, texts), network(z, timesteps.flip(0), texts), network(z, timesteps, texts + 1)
    assert all(not torch.isclose(x[:2], other[:2]).all(1).any() for other in others)
    dropped = torch.tensor([True, False, True, False, False])
    first, second = network(z, timesteps, texts, dropped), network(z, timesteps, texts + 1, dropped)
    assert torch.equal(first[dropped], second[dropped])
    assert not torch.isclose(first[~dropped], second[~dropped]).all(1).any()
    torch.testing.assert_close(first[~dropped], x[~dropped])


def test_samples_of_a_batch_are_independent() -> None:
    network, (z, timesteps, texts) = trained_network(), inputs()
    alone = torch.cat([network(z[i : i + 1], timesteps[i : i + 1], texts[i : i + 1]) for i in range(5)])
    torch.testing.assert_close(alone, network(z, timesteps, texts), rtol=1e-4, atol=1e-5)


def test_all_weights_except_the_statistics_get_gradients() -> None:
    network, (z, timesteps, texts) = trained_network(), inputs()
    network(z, timesteps, texts, torch.tensor([True, False] * 2 + [False])).square().mean().backward()
    no_gradient = {name for name, weight in network.named_parameters() if weight.grad is None}
    assert no_gradient == {f"{kind}.{what}" for kind in ("texts", "images") for what in ("mean", "deviation", "length")}
    assert all(weight.grad.abs().sum() > 0 for weight in network.parameters() if weight.grad is not None)


def test_scaled_embeddings_have_mean_0_and_variance_1_and_can_be_restored() -> None:
    torch.manual_seed(0)
    embeddings = (torch.randn(500, 16) * torch.linspace(0.1, 2, 16) + 3) * (1 + torch.rand(500, 1))
    scale = Scale(16)
    scale.fit(embeddings.half())
    x = scale(embeddings)
    torch.testing.assert_close(x.mean(0), torch.zeros(16), rtol=0, atol=2e-2)
    torch.testing.assert_close(x.std(0), torch.ones(16), rtol=2e-2, atol=0)
    torch.testing.assert_close(scale(7 * embeddings), x)  # the length has no effect
    restored = scale.embeddings(x)
    torch.testing.assert_close(cosine_similarity(restored, embeddings), torch.ones(500))
    torch.testing.assert_close(restored.norm(dim=-1), embeddings.norm(dim=-1).mean().expand(500), rtol=1e-3, atol=0)


def test_a_constant_component_is_not_amplified() -> None:
    scale = Scale(4)
    scale.fit(torch.tensor([[1.0, 0.0, 0.0, 0.0]]).expand(10, 4))
    assert scale(torch.tensor([[1.0, 0.01, 0.0, 0.0]])).abs().max() < 1e3
