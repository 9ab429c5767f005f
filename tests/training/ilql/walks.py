"""Random walks on a graph, trlX's first task for offline RL (examples/randomwalks at 3340c2f).

21 nodes, edges with probability 0.1 (seed 1002). A walk begins anywhere but at the goal, node 0,
takes edges at random, and has at most 10 nodes. Its optimality is 1 if it reaches the goal by a
shortest path, and 0 if it does not reach it.
"""

import numpy as np
import torch
from torch import Tensor

from toolkit.data.records import Row
from toolkit.models.roles import Roles
from toolkit.models.sampling import SamplingRule

NODES, LONGEST, GOAL, PAD = 21, 10, 0, 21


class Walks:
    """The graph, and walks on it.

    Attributes:
        edges: bool (NODES, NODES).
        walks: lists of nodes.
        shortest: nodes of a shortest path from each node to the goal, LONGEST at most.
    """

    def __init__(self, count: int = 1000) -> None:
        rng = np.random.RandomState(1002)
        while True:
            edges = rng.rand(NODES, NODES) > 0.9
            np.fill_diagonal(edges, False)
            if edges.sum(axis=1).all():
                break
        edges[GOAL] = False
        edges[GOAL, GOAL] = True
        self.edges = edges

        self.walks = []
        for _ in range(count):
            node = GOAL
            while node == GOAL:
                node = rng.randint(NODES)
            walk = [node]
            while len(walk) < LONGEST and node != GOAL:
                node = int(rng.choice(np.nonzero(edges[node])[0]))
                walk.append(node)
            self.walks.append(walk)
        self.shortest = self._lengths()

    def _lengths(self) -> list[int]:
        far = [LONGEST] * NODES
        far[GOAL] = 1
        for _ in range(LONGEST):
            for node in range(NODES):
                if node != GOAL:
                    following = min(far[there] for there in np.nonzero(self.edges[node])[0])
                    far[node] = min(far[node], following + 1)
        return far

    def optimality(self, walk: list[int]) -> float:
        """Return 1 for a shortest path to the goal, 0 for a walk that misses it or leaves edges."""
        length = LONGEST
        for place, node in enumerate(walk):
            if node >= NODES or (place > 0 and not self.edges[walk[place - 1], node]):
                break
            if node == GOAL:
                length = place + 1
                break
        return (LONGEST - length) / (LONGEST - self.shortest[walk[0]])

    def rows(self) -> list[Row]:
        """Rows for ILQLTrainer: from the first node on, with standardized rewards."""
        rewards = np.array([self.optimality(walk) for walk in self.walks])
        learned = (rewards - rewards.mean()) / rewards.std(ddof=1)
        return [
            {"prompt_ids": walk[:1], "completion_ids": walk[1:], "reward": float(reward)}
            for walk, reward in zip(self.walks, learned, strict=True)
        ]

    def reached(self, roles: Roles, role: str, each: int) -> float:
        """Mean optimality of ``each`` sampled walks from every node but the goal."""
        rule = SamplingRule(LONGEST - 1, 1.0, PAD, (GOAL,))
        starts = [[node] for node in range(1, NODES) for _ in range(each)]
        noise = torch.Generator().manual_seed(7)
        _, sampled = rule.sample(roles.step(role, 1.0), starts, noise, roles.device)
        found: list[Tensor] = list(sampled.completion_ids)
        walks = [[*start, *ids.tolist()] for start, ids in zip(starts, found, strict=True)]
        return float(np.mean([self.optimality(walk) for walk in walks]))
