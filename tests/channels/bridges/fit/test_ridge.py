"""The closed form and its choice of layers, against plain formulas."""

import pytest
import torch

from unspoken.channels.bridges.fit.ridge import PART, PENALTIES, Gram, choose_layers, tokens_for


def draws(rows: int, columns: int, seed: int) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def solved(penalty: float, chunks: int = 3) -> tuple[Gram, torch.Tensor, torch.Tensor]:
    x = draws(240, 7, 0) * torch.arange(1, 8) + 40
    y = x @ draws(7, 5, 1) + 0.1 * draws(240, 5, 2) - 3
    gram = Gram(7, 5, torch.device("cpu"))
    for part, target in zip(x.chunk(chunks), y.chunk(chunks), strict=True):
        gram.add(part, target)
    return gram, x, y


def standard(rows: torch.Tensor) -> torch.Tensor:
    return (rows - rows.mean(0)) / rows.std(0, unbiased=False)


def test_the_streamed_solution_is_the_ridge_of_all_rows_at_once() -> None:
    gram, x, y = solved(1e-3)
    a, b = standard(x.double()), standard(y.double())
    plain = torch.linalg.solve(a.T @ a / len(a) + 1e-3 * torch.eye(7), a.T @ b / len(a))
    assert torch.allclose(gram.solve(penalty=1e-3).full().double(), plain, atol=1e-3)


def test_a_full_rank_cut_is_the_uncut_map() -> None:
    solution = solved(1e-3)[0].solve()
    encode, decode = solution.cut(5)
    assert torch.allclose(encode @ decode, solution.full(), atol=1e-4)


def test_a_cut_is_the_best_map_of_its_rank() -> None:
    solution = solved(1e-3)[0].solve()
    encode, decode = solution.cut(2)
    best = torch.linalg.svd(solution.half).S[2:].square().sum()
    approximated = solution.factor.T @ encode @ decode
    assert torch.allclose((approximated - solution.half).square().sum(), best, rtol=1e-2, atol=1e-5)


def test_a_rank_beyond_what_there_is_is_padded() -> None:
    encode, decode = solved(1e-3)[0].solve().cut(9)
    assert encode.shape == (7, 9) and decode.shape == (9, 5)
    assert not encode[:, 5:].any()


def test_some_columns_are_solved_alone() -> None:
    gram, x, y = solved(1e-3)
    alone = Gram(3, 5, torch.device("cpu"))
    alone.add(x[:, :3], y)
    part = gram.solve(torch.arange(3))
    assert torch.allclose(part.full(), alone.solve().full(), atol=1e-3)


def test_a_column_that_never_varies_says_nothing() -> None:
    gram = Gram(2, 1, torch.device("cpu"))
    x = torch.cat([draws(50, 1, 0), torch.full((50, 1), 3.0)], dim=1)
    gram.add(x, x[:, :1])
    weights = gram.solve().full()
    assert weights[1].abs() < 1e-5 and torch.isfinite(weights).all()


def messages(penalised: bool) -> Gram:
    """Of 40 columns and 48 messages of 2 rows, three held out: noise is soon learnt."""
    x, noise = draws(96, 40, 0), draws(96, 5, 2)
    y = 0.3 * x @ draws(40, 5, 1) / 40**0.5 + noise if penalised else x @ draws(40, 5, 1)
    gram = Gram(40, 5, torch.device("cpu"))
    for number, (part, target) in enumerate(zip(x.split(2), y.split(2), strict=True)):
        (gram.hold if number % 16 == 7 else gram.add)(part, target)
    return gram


def test_the_penalty_is_the_one_that_explains_most_of_what_is_held() -> None:
    noisy, exact = messages(penalised=True).solve(), messages(penalised=False).solve()
    assert noisy.penalty > exact.penalty == PENALTIES[0]
    assert exact.explained is not None and exact.explained > 0.99


def test_what_chooses_the_penalty_is_not_solved_from() -> None:
    gram = messages(penalised=True)
    assert (gram.count, gram.held) == (96 - 3 * 2, 3 * 2)


def test_a_long_message_gives_some_of_its_rows_to_choose_by() -> None:
    gram = Gram(3, 2, torch.device("cpu"))
    gram.hold(draws(4 * PART - 1, 3, 0), draws(4 * PART - 1, 2, 1))
    assert gram.held == PART


def test_a_given_penalty_is_kept() -> None:
    assert messages(penalised=True).solve(penalty=0.25).penalty == 0.25


def test_what_is_explained_is_r2_of_the_held_out_rows() -> None:
    gram = messages(penalised=True)
    solution = gram.solve()
    x, y = (torch.cat(rows) for rows in zip(*gram._held, strict=True))
    said = (x - solution.mean) * solution.scale @ solution.full()
    true = (y - solution.offset) / solution.deviation
    plain = 1 - (true - said).square().sum() / true.square().sum()
    assert solution.explained == pytest.approx(float(plain), abs=1e-4)


def test_components_are_those_of_standardised_rows() -> None:
    """Against a singular value decomposition; a column that never varies is no part of them."""
    x = draws(300, 6, 0) @ draws(6, 6, 1) * torch.tensor([1, 50, 1, 0.1, 3, 0]) + 20
    gram = Gram(6, 0, torch.device("cpu"))
    for part in x.split(70):
        gram.add(part, part[:, :0])
    mean, components = gram.components(3)
    standardised = standard(x[:, :5])
    _, _, right = torch.linalg.svd(standardised, full_matrices=False)
    plain = standardised @ right[:3].T
    made = (x - mean) @ components
    assert torch.allclose(made.abs(), plain.abs(), atol=2e-2)  # up to the sign of each
    assert not components[5].any()


def test_tokens_are_six_times_the_columns_at_least() -> None:
    assert [tokens_for(columns, 1000) for columns in (100, 200)] == [1000, 1200]


def test_the_layer_that_explains_the_target_is_chosen_first() -> None:
    blocks = [draws(400, 8, seed) for seed in range(4)]
    target = blocks[2] @ draws(8, 6, 9)
    assert choose_layers(blocks, blocks[0][:, :0], target, 1) == (2,)


def test_a_layer_that_repeats_another_is_chosen_last() -> None:
    blocks = [draws(400, 8, seed) for seed in range(3)]
    blocks[1] = blocks[0] + 0.01 * draws(400, 8, 7)
    target = torch.cat([blocks[0] @ draws(8, 6, 9), blocks[2] @ draws(8, 3, 10)], dim=1)
    chosen = choose_layers(blocks, blocks[0][:, :0], target, 2)
    assert 2 in chosen and set(chosen) != {0, 1}


@pytest.mark.parametrize("always", [0, 5])
def test_layers_are_chosen_as_ridges_solved_one_by_one_choose_them(always: int) -> None:
    """Each next layer is the one whose ridge, with all before it, has the least loss."""
    blocks = [draws(300, 6, seed) for seed in range(6)]
    known = draws(300, always, 11)
    target = sum(
        (block @ draws(6, 9, n) * (n + 1) for n, block in enumerate(blocks)), draws(300, 9, 12)
    )
    wanted, *parts = ((block - block.mean(dim=0)) / block.std(dim=0) for block in (target, *blocks))
    base = (known - known.mean(dim=0)) / known.std(dim=0) if always else known
    order: list[int] = []
    while len(order) < 4:
        losses = {}
        for number in sorted(set(range(6)) - set(order)):
            x = torch.cat([base, *(parts[n] for n in (*order, number))], dim=1)
            square = x[:150].mT @ x[:150] + 1.5 * torch.eye(x.shape[1])
            weights = torch.linalg.solve(square, x[:150].mT @ wanted[:150])
            losses[number] = float((wanted[150:] - x[150:] @ weights).square().mean())
        order.append(min(losses, key=losses.__getitem__))
    assert choose_layers(blocks, known, target, 4) == tuple(order)
    assert choose_layers(blocks, known, target, 2) == tuple(order[:2])
