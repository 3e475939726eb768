"""What is known of each prompt's pass rate: Beta posteriors over outcomes, kept as columns.

The policy changes, so evidence grows old; how fast is not known. So several beliefs are kept side by side. Each of the
first D holds that the evidence fades by its own share with every policy version, and gives way to the prior of the
prompt's kind (capability, difficulty, source), which is fitted to the first groups of its prompts. The last one holds
that the prompt has moved: it knows only the last group, and what the next one was like for other prompts of the
capability with such a group. Each prompt weighs the beliefs by how well they predicted its own groups, starting from
how well they predict those of its capability: dynamic model averaging (https://doi.org/10.1198/TECH.2009.08104). So a
posterior is a mixture of Betas.

Fading is applied when a row is read or written. Priors are fitted to first groups, and moves to what follows upon a
last group, because which prompts are drawn depends on their outcomes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from curricula.beta_binomial import log_likelihood, log_pmf
from curricula.priors import Priors
from rollouts.types import Prompt

DECAYS = (0.9995,)
"""Shares of the evidence left after one policy version. Where the policy changes faster, prompts have moved; faster
decays, beside this one or in its place, made the intervals too wide."""
STAYS = 0.75
"""How much is given at first to the beliefs that evidence lasts; the rest to the one that the prompt has moved, which
knows nothing of what prompts move to yet. Half and half would draw again whatever was all or nothing in its first
group, or in a scan."""
MEMORY = 0.5
"""A prompt's own weights of the beliefs are raised to this power before each group, those of its capability to the
rest."""
LEARNING_RATE = 0.02
"""How far a group moves the weights of its capability towards those of its prompt."""
LOGITS = 200 * np.sinh(np.linspace(-5, 5, 1601)) / np.sinh(5)
RATES = 1 / (1 + np.exp(-LOGITS))
"""Where posteriors are integrated: densely around one half, and so far out that no tail is missed."""


@dataclass(frozen=True)
class PromptStats:
    """A view of one row.

    Example: `PromptStats("9f…", attempts=16, solves=4, alpha=3.1, beta=7.6, last_version=12)`

    `alpha` and `beta` are of the Beta with the posterior's mean and variance.
    """

    prompt_id: str
    attempts: int
    solves: int
    alpha: float
    beta: float
    last_version: int

    @property
    def pass_rate(self) -> float:
        """The posterior's mean."""
        return self.alpha / (self.alpha + self.beta)


class StatsTable:
    """The statistics of a list of prompts.

    P = prompts, K = kinds, C = capabilities, D = decays, B = D + 1 beliefs, N = rows asked for.
    """

    def __init__(self, prompts: Sequence[Prompt], group_size: int, decays: Sequence[float] = DECAYS) -> None:
        """Starts with nothing known.

        Args:
            prompts: the order fixes each prompt's row.
            group_size: rollouts in a group.
            decays: shares of the evidence left after one policy version.
        """
        kinds: dict[tuple[str, int | None, str], int] = {}
        capabilities: dict[str, int] = {}
        ids, count = [], len(prompts)
        self.kind_P = np.empty(count, dtype=np.int32)
        for row, prompt in enumerate(prompts):
            ids.append(prompt.prompt_id.encode())
            capabilities.setdefault(prompt.domain, len(capabilities))
            self.kind_P[row] = kinds.setdefault((prompt.domain, prompt.difficulty, prompt.source), len(kinds))
        self.prompt_ids = np.array(ids, dtype=np.bytes_)
        self.capabilities, self.kinds = list(capabilities), [_name(*kind) for kind in kinds]
        self.group_size, self.decays = group_size, tuple(decays)
        self.priors = Priors([capabilities[kind[0]] for kind in kinds], group_size)
        self.moves = Priors(np.repeat(np.arange(len(capabilities)), group_size + 1).tolist(), group_size)
        self.attempts_P = np.zeros(count, dtype=np.int32)
        self.solves_P = np.zeros(count, dtype=np.int32)
        self.version_P = np.zeros(count, dtype=np.int32)
        self.last_P = np.zeros(count, dtype=np.int32)  # rollouts solved in the last group
        self.since_P = np.zeros(count, dtype=np.int32)  # the version at which the prompt took its row
        self.seen_PD = np.zeros((count, len(decays)), dtype=np.float32)  # outcomes, faded up to version_P
        self.solved_PD = np.zeros((count, len(decays)), dtype=np.float32)
        self._weight_B = np.array([STAYS / len(decays)] * len(decays) + [1 - STAYS])
        self.weight_PB = np.tile(self._weight_B.astype(np.float32), (count, 1))
        self.weight_CB = np.tile(self._weight_B, (len(capabilities), 1))

    def observe(self, groups: Sequence[tuple[int, Sequence[bool], int]], alone: bool = False) -> None:
        """Adds groups: the row of each, its outcomes, and the policy version that it was drawn under.

        Many together cost little more than one. They are entered in order where a row occurs again. `alone`: nothing is
        concluded for other prompts, since the policy is another one by now.
        """
        again = []
        first: dict[int, tuple[int, int, int]] = {}
        for group in groups:
            row, outcomes, version = group
            if row in first:
                again.append(group)
            else:
                first[row] = sum(outcomes), len(outcomes), version
        if first:
            solved, seen, version = np.array(list(first.values()), dtype=np.int32).T
            self._observe(np.fromiter(first, dtype=np.int32), solved, seen, version, alone)
        if again:
            self.observe(again, alone)

    def _observe(
        self, rows_N: np.ndarray, solved_N: np.ndarray, seen_N: np.ndarray, version_N: np.ndarray, alone: bool
    ) -> None:
        known = self.attempts_P[rows_N] > 0
        alpha, beta, weight = self._mixture(rows_N, version_N)
        weight *= np.exp(log_likelihood(solved_N[:, None], seen_N[:, None], alpha, beta))
        weight /= weight.sum(axis=1, keepdims=True)
        self.weight_PB[rows_N[known]] = weight[known]
        if not alone:
            self._conclude(rows_N, solved_N, seen_N, weight, known)
        age = np.maximum(version_N - self.version_P[rows_N], 0)
        fade = np.array(self.decays) ** age[:, None]
        self.seen_PD[rows_N] = self.seen_PD[rows_N] * fade + seen_N[:, None]
        self.solved_PD[rows_N] = self.solved_PD[rows_N] * fade + solved_N[:, None]
        self.attempts_P[rows_N] += seen_N
        self.solves_P[rows_N] += solved_N
        self.version_P[rows_N] += age
        self.last_P[rows_N] = np.rint(solved_N * (self.group_size / seen_N))

    def _conclude(
        self, rows_N: np.ndarray, solved_N: np.ndarray, seen_N: np.ndarray, weight: np.ndarray, known: np.ndarray
    ) -> None:
        """What groups say of other prompts: how evidence lasts in their capability, what their kind is like, and what
        follows upon which last group.
        """
        kind, capability, fits = self.kind_P[rows_N], self.capability(rows_N), seen_N <= self.group_size
        for number in np.unique(capability[known]).tolist():
            mine = weight[known & (capability == number)]
            self.weight_CB[number] += (1 - (1 - LEARNING_RATE) ** len(mine)) * (
                mine.mean(axis=0) - self.weight_CB[number]
            )
        again, first = known & fits, ~known & fits
        self.moves.observe(self._move(rows_N[again]), solved_N[again], seen_N[again])
        self.priors.observe(kind[first], solved_N[first], seen_N[first])

    def replace(self, row: int, prompt: Prompt, version: int = 0) -> None:
        """Puts another prompt of the same capability into a row at a version; nothing is known of it but its kind."""
        name = _name(prompt.domain, prompt.difficulty, prompt.source)
        if name not in self.kinds:
            self.kinds.append(name)
            self.priors.add(self.capabilities.index(prompt.domain))
        self.kind_P[row] = self.kinds.index(name)
        prompt_id = np.bytes_(prompt.prompt_id.encode())
        if len(prompt_id) > self.prompt_ids.itemsize:  # NumPy would cut it off
            self.prompt_ids = self.prompt_ids.astype(f"S{len(prompt_id)}")
        self.prompt_ids[row] = prompt_id
        for name in self._COLUMNS:
            getattr(self, name)[row] = 0
        self.weight_PB[row], self.since_P[row] = self._weight_B, version

    def capability(self, rows_N: np.ndarray) -> np.ndarray:
        """The number of each prompt's capability: [N]."""
        return self.priors.class_K[self.kind_P[rows_N]]

    def _move(self, rows_N: np.ndarray) -> np.ndarray:
        """The kind of move that the next group of each prompt is, by its capability and last group: [N]."""
        return self.capability(rows_N) * (self.group_size + 1) + self.last_P[rows_N]

    def _mixture(self, rows_N: np.ndarray, version: int | np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """`(alpha, beta, weight)` of the beliefs, each [N, B]."""
        kind, move = self.kind_P[rows_N], self._move(rows_N)
        fade = np.array(self.decays) ** np.maximum(version - self.version_P[rows_N], 0)[:, None]
        seen, solved = self.seen_PD[rows_N] * fade, self.solved_PD[rows_N] * fade
        prior = self.priors.alpha_K[kind], self.priors.beta_K[kind]
        moved = np.where(self.attempts_P[rows_N] == 0, prior, (self.moves.alpha_K[move], self.moves.beta_K[move]))
        weight = self.weight_PB[rows_N] ** MEMORY * self.weight_CB[self.capability(rows_N)] ** (1 - MEMORY)
        return (
            np.column_stack((prior[0][:, None] + solved, moved[0])),
            np.column_stack((prior[1][:, None] + seen - solved, moved[1])),
            weight / weight.sum(axis=1, keepdims=True),
        )

    def posterior(self, rows_N: np.ndarray, version: int) -> tuple[np.ndarray, np.ndarray]:
        """`(alpha, beta)` of rows as of a policy version, each [N]: the Beta with the mixture's mean and variance."""
        alpha, beta, weight = self._mixture(rows_N, version)
        means = alpha / (alpha + beta)
        mean = (weight * means).sum(axis=1)
        variance = (weight * (means * (1 - means) / (alpha + beta + 1) + (means - mean[:, None]) ** 2)).sum(axis=1)
        strength = mean * (1 - mean) / variance - 1
        return mean * strength, (1 - mean) * strength

    def sample(self, rows_N: np.ndarray, version: int, rng: np.random.Generator, draws: int = 1) -> np.ndarray:
        """Pass rates drawn from the posterior of each row: [N, draws]."""
        alpha, beta, weight = self._mixture(rows_N, version)
        below = weight.cumsum(axis=1)[:, None, :-1]
        belief = (rng.random((len(rows_N), draws, 1)) > below).sum(axis=2)
        index = np.arange(len(rows_N))[:, None]
        rates: np.ndarray = rng.beta(alpha[index, belief], beta[index, belief])
        return rates

    def interval(self, rows_N: np.ndarray, version: int, mass: float) -> tuple[np.ndarray, np.ndarray]:
        """`(low, high)`, each [N]: pass rates that leave out the same share of the posterior below and above."""
        alpha, beta, weight = (each[..., None] for each in self._mixture(rows_N, version))
        log_density = alpha * np.log(RATES) + beta * np.log(RATES[::-1])  # of the rate's logit, which has no poles
        density = np.exp(log_density - log_density.max(axis=2, keepdims=True)) * np.gradient(LOGITS)
        below = density.cumsum(axis=2)
        below = (weight * below / below[..., -1:]).sum(axis=1)
        low, high = (RATES[(below < share).sum(axis=1)] for share in ((1 - mass) / 2, (1 + mass) / 2))
        return low, high

    def predict(self, rows_N: np.ndarray, version: int) -> np.ndarray:
        """The probability of 0, 1, … G solved rollouts in the next group of each prompt: [N, G + 1]."""
        alpha, beta, weight = self._mixture(rows_N, version)
        result: np.ndarray = (weight[..., None] * np.exp(log_pmf(alpha, beta, self.group_size))).sum(axis=1)
        return result

    def view(self, row: int, version: int) -> PromptStats:
        """One prompt's statistics."""
        alpha, beta = self.posterior(np.array([row]), version)
        attempts, solves, last = int(self.attempts_P[row]), int(self.solves_P[row]), int(self.version_P[row])
        return PromptStats(self.prompt_ids[row].decode(), attempts, solves, float(alpha[0]), float(beta[0]), last)

    _COLUMNS = ("attempts_P", "solves_P", "version_P", "last_P", "since_P", "seen_PD", "solved_PD", "weight_PB")

    def state_dict(self) -> dict[str, np.ndarray]:
        """Copies of all columns; rows by prompt id, so that they can be restored with other prompts."""
        fits = {"priors": self.priors, "moves": self.moves}
        return {
            "prompt_ids": self.prompt_ids.copy(),
            **{f"stats/{name}": getattr(self, name).copy() for name in self._COLUMNS},
            "kinds": np.array(self.kinds),
            "kinds/capability": self.priors.class_K.copy(),
            "kinds/groups": self.priors.counts_KG.copy(),
            "capabilities": np.array(self.capabilities),
            "capabilities/moves": self._follow_ups().copy(),
            "capabilities/weights": self.weight_CB.copy(),
            **{f"{name}/{key}": column for name, fit in fits.items() for key, column in fit.state_dict().items()},
        }

    def load_state_dict(self, state: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Restores what `state_dict` gave, for the prompts that are still there; others stay unseen.

        Returns:
            The rows of these prompts, and their rows in the state.
        """
        if np.array_equal(self.prompt_ids, state["prompt_ids"]):
            rows = places = np.arange(len(self.prompt_ids))
        else:
            _, rows, places = np.intersect1d(self.prompt_ids, state["prompt_ids"], return_indices=True)
        for name in self._COLUMNS:
            if name != "since_P" or "stats/since_P" in state:  # else written by an older version
                getattr(self, name)[rows] = state[f"stats/{name}"][places]
        self._remember_kinds(state)
        _, kinds, saved = np.intersect1d(self.kinds, state["kinds"], return_indices=True)
        _, capabilities, saved_capabilities = np.intersect1d(
            self.capabilities, state["capabilities"], return_indices=True
        )
        self.weight_CB[capabilities] = state["capabilities/weights"][saved_capabilities]
        saved_size = state["kinds/groups"].shape[1] - 1
        if saved_size == self.group_size:
            self.priors.counts_KG[kinds] = state["kinds/groups"][saved]
            self._follow_ups()[capabilities] = state["capabilities/moves"][saved_capabilities]
        else:  # groups of another size say nothing of groups of this one
            self.last_P[rows] = np.rint(self.last_P[rows] * (self.group_size / saved_size))
        alike = self.kinds == state["kinds"].tolist() and self.capabilities == state["capabilities"].tolist()
        for name, fit in {"priors": self.priors, "moves": self.moves}.items():
            if alike and saved_size == self.group_size and f"{name}/alpha" in state:
                fit.load_state_dict({key: state[f"{name}/{key}"] for key in fit.state_dict()})
            else:
                fit.fit()
        return rows, places

    def _remember_kinds(self, state: Mapping[str, np.ndarray]) -> None:
        """Takes over the kinds of a state in its order, also those whose prompts are gone: others may follow them."""
        if "kinds/capability" not in state:  # written by an older version
            return
        numbers = {name: number for number, name in enumerate(self.capabilities)}
        saved = zip(state["kinds"].tolist(), state["capabilities"][state["kinds/capability"]].tolist(), strict=True)
        class_of = {name: numbers[capability] for name, capability in saved if capability in numbers}
        class_of |= dict(zip(self.kinds, self.priors.class_K.tolist(), strict=True))
        places = {name: place for place, name in enumerate(class_of)}
        self.kind_P = np.array([places[name] for name in self.kinds], dtype=np.int32)[self.kind_P]
        self.kinds, self.priors = list(class_of), Priors(list(class_of.values()), self.group_size)

    def _follow_ups(self) -> np.ndarray:
        """The groups that followed upon each last group."""
        return self.moves.counts_KG.reshape(-1, self.group_size + 1, self.group_size + 1)


def _name(capability: str, difficulty: int | None, source: str) -> str:
    """The name of a kind of prompts."""
    return f"{capability}/{difficulty}/{source}"
