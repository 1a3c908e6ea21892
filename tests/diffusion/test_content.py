"""Tests of the content as a cross-attention token."""

import torch

from gen1_train.diffusion.content import content_tokens


def test_a_token_keeps_the_direction_and_has_unit_sized_components() -> None:
    torch.manual_seed(0)
    embeddings = torch.randn(3, 64)
    tokens = content_tokens(embeddings)
    assert tokens.shape == (3, 1, 64)
    torch.testing.assert_close(tokens.norm(dim=-1), torch.full((3, 1), 8.0))
    cosine = torch.nn.functional.cosine_similarity(tokens[:, 0], embeddings)
    torch.testing.assert_close(cosine, torch.ones(3))


def test_the_length_of_an_embedding_has_no_effect() -> None:
    torch.manual_seed(0)
    embeddings = torch.randn(2, 16)
    torch.testing.assert_close(content_tokens(embeddings * torch.tensor([[1e-3], [50.0]])), content_tokens(embeddings))


def test_dropped_content_becomes_the_zero_token_and_the_rest_is_unchanged() -> None:
    torch.manual_seed(0)
    embeddings = torch.randn(3, 16)
    tokens = content_tokens(embeddings, torch.tensor([False, True, False]))
    assert not tokens[1].any()
    assert torch.equal(tokens[[0, 2]], content_tokens(embeddings)[[0, 2]])


def test_a_zero_embedding_becomes_the_zero_token_without_nan() -> None:
    assert torch.equal(content_tokens(torch.zeros(1, 16)), torch.zeros(1, 1, 16))


def test_half_precision_embeddings_are_normalised_in_float32() -> None:
    """Squares of components above 256 do not fit into float16."""
    tokens = content_tokens(torch.full((1, 768), 300.0, dtype=torch.float16))
    torch.testing.assert_close(tokens, torch.ones(1, 1, 768))
