"""The methods, one row each, which compare.py, the report and the card on the Hub read.

To add one, add a row here, its choice and TRL's classes in ``baselines/config.py``, and its
overrides in ``baselines/trainers.py``. Best-of-n has no row, since it trains nothing (it is a
contender of evaluate.py); nor has the online loop, which trains by "reward" and "ppo" in turn.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

# The settings of a run that a card shows, if the run has them.
TRAINING = ("per_device_train_batch_size", "gradient_accumulation_steps", "learning_rate", "seed")
ADAPTER = ("lora_r", "lora_alpha", "lora_target_modules", "precision")
SAMPLING = ("response_length", "temperature", "stop_token", "truncate_token", "truncate_after")
LOSS = ("method", "loss_type", "beta", "rejected", "num_generations", "num_iterations")
LENGTH = ("max_steps", "num_train_epochs", "max_length")
BASELINE_SETTINGS = (*LOSS, *LENGTH, *TRAINING, *ADAPTER, *SAMPLING)
REWARD_SETTINGS = (
    *("loss_type", "label_smoothing", "normalize_samples", "num_train_epochs", "max_length"),
    *("chat_template", "chat_template_kwargs", *TRAINING, *ADAPTER),
)
LOOP = ("total_episodes", "num_ppo_epochs", "num_mini_batches", "cliprange")
KL = ("kl_controller", "kl_target", "kl_coef", "kl_horizon", "kl_in", "kl_loss")
PPO_SETTINGS = (
    *(*LOOP, "gamma", "lam", *KL, "whiten_rewards", "whiten_advantages", "entropy_coef"),
    *("value", "value_init", "value_hidden"),
    *(*TRAINING, *ADAPTER, *SAMPLING),
)
SIBLINGS_SETTINGS = (
    *("algorithm", "num_generations", "length_mean", "ratio_of", *LOOP, *KL),
    *(*TRAINING, *ADAPTER, *SAMPLING),
)

ILQL_SETTINGS = (
    *("rewards", "normalize_rewards", "tau", "gamma", "cql_scale", "cql_temperature", "awac_scale"),
    *("awac_beta", "alpha", "sync_every", "q_head", "beta", "critic_learning_rate"),
    *("max_steps", "num_train_epochs", "max_length", *TRAINING, *ADAPTER),
)


@dataclass(frozen=True)
class Paper:
    """Where a method comes from.

    Attributes:
        arxiv: its id on arXiv.
        title: its title.
    """

    arxiv: str
    title: str


@dataclass(frozen=True)
class Method:
    """What the rest of the toolkit knows about a method.

    Attributes:
        name: in run.json, in ``preference.py --method``, and in compare.py's configs (NAME*.yaml).
        title: the heading that compare.py prints.
        recipe: the file in recipes/ that trains by it, without .py.
        learns_from: the rows that its trainer reads: whole comparisons, their picks, pairs of the
            pick and another completion, completions that are wanted or not, or its own samples.
        card: a sentence for the card on how it was trained; {paper} is replaced by the arXiv id.
        paper: None if there is no single paper.
        settings: the settings that the card shows.
        words: flags that the recipe needs besides a config.
        needs_reward: whether samples are scored in training.
        has_reference: whether it is held to the model that it started from.
        resumes: whether --resume auto continues a killed run.
        continues: whether the same command continues a killed run.
        adapter: the adapter that it leaves, within its output_dir; of ilql the folder of two.
    """

    name: str
    title: str
    recipe: str
    learns_from: Literal["comparisons", "picks", "pairs", "completions", "samples"]
    card: str
    paper: Paper | None = None
    settings: tuple[str, ...] = BASELINE_SETTINGS
    words: tuple[str, ...] = ()
    needs_reward: bool = False
    has_reference: bool = False
    resumes: bool = False
    continues: bool = False
    adapter: str = "adapter"

    @property
    def sentence(self) -> str:
        """A sentence for a card on how it was trained."""
        return self.card.format(paper=f"arXiv {self.paper.arxiv}" if self.paper else "")

    @property
    def source(self) -> str:
        """Its name and paper, in a line."""
        if self.paper is None:
            return self.name
        return f"{self.name} ({self.paper.title}, arXiv {self.paper.arxiv})"


RLOO = Paper(
    "2402.14740",
    "Back to Basics: Revisiting REINFORCE Style Optimization for Learning from Human Feedback in "
    "LLMs",
)
GRPO = Paper(
    "2402.03300",
    "DeepSeekMath: Pushing the Limits of Mathematical Reasoning in Open Language Models",
)

# In the order in which compare.py trains them.
ROWS = (
    Method(
        name="reward",
        title="Train a reward model on the picks",
        recipe="reward",
        learns_from="comparisons",
        card="A scalar head on a LoRA adapter, trained on comparisons. Scores are scaled by gain "
        "and bias to mean 0 and standard deviation 1 on samples of the model that it started "
        "from.",
        settings=REWARD_SETTINGS,
    ),
    Method(
        name="sft",
        title="Fine-tune on the picks",
        recipe="sft",
        learns_from="picks",
        card="Supervised fine-tuning on the picks of comparisons, or on text.",
    ),
    Method(
        name="dpo",
        title="Optimize preferences directly",
        recipe="preference",
        learns_from="pairs",
        card="Trained on comparisons directly, without a reward model: TRL's DPO ({paper}).",
        paper=Paper(
            "2305.18290",
            "Direct Preference Optimization: Your Language Model is Secretly a Reward Model",
        ),
        has_reference=True,
    ),
    Method(
        name="kto",
        title="Tune the policy with KTO",
        recipe="preference",
        learns_from="completions",
        card="Trained on picks and on what was not picked: TRL's KTO ({paper}).",
        paper=Paper("2402.01306", "KTO: Model Alignment as Prospect Theoretic Optimization"),
        words=("--method", "kto"),
        has_reference=True,
    ),
    Method(
        name="orpo",
        title="Tune the policy with ORPO",
        recipe="preference",
        learns_from="pairs",
        card="Trained on comparisons directly, without a reference: TRL's ORPO ({paper}).",
        paper=Paper(
            "2403.07691", "ORPO: Monolithic Preference Optimization without Reference Model"
        ),
        words=("--method", "orpo"),
    ),
    Method(
        name="cpo",
        title="Tune the policy with CPO",
        recipe="preference",
        learns_from="pairs",
        card="Trained on comparisons directly, without a reference: TRL's CPO ({paper}).",
        paper=Paper(
            "2401.08417",
            "Contrastive Preference Optimization: Pushing the Boundaries of LLM Performance in "
            "Machine Translation",
        ),
        words=("--method", "cpo"),
    ),
    Method(
        name="ilql",
        title="Train a critic that steers",
        recipe="ilql",
        learns_from="completions",
        card="ILQL ({paper}): the policy learned completions by likelihood, offline, and a critic "
        "of its own learned which tokens lead to high rewards, to steer it when it writes. This "
        "adapter is the policy without the critic.",
        paper=Paper(
            "2206.11871",
            "Offline RL for Natural Language Generation with Implicit Language Q Learning",
        ),
        settings=ILQL_SETTINGS,
        resumes=True,
        adapter="adapters",
    ),
    Method(
        name="rloo",
        title="Tune the policy with RLOO",
        recipe="rloo",
        learns_from="samples",
        card="RLOO ({paper}) by TRL, with a KL penalty.",
        paper=RLOO,
        needs_reward=True,
        has_reference=True,
    ),
    Method(
        name="grpo",
        title="Tune the policy with GRPO",
        recipe="rloo",
        learns_from="samples",
        card="GRPO ({paper}) by TRL, with a KL penalty in the loss.",
        paper=GRPO,
        words=("--method", "grpo"),
        needs_reward=True,
        has_reference=True,
    ),
    Method(
        name="ppo",
        title="Tune the policy with PPO",
        recipe="ppo",
        learns_from="samples",
        card="PPO with a KL penalty, after Ziegler et al., 2019.",
        paper=Paper("1909.08593", "Fine-Tuning Language Models from Human Preferences"),
        settings=PPO_SETTINGS,
        needs_reward=True,
        has_reference=True,
        resumes=True,
        adapter="adapters/policy",
    ),
    Method(
        name="warp",
        title="Tune policies with WARP",
        recipe="warp",
        learns_from="samples",
        card="WARP ({paper}): several PPO runs, each held to a moving average of its own policy, "
        "were merged by SLERP; the next ones started between their start and the merged policy.",
        paper=Paper("2406.16768", "WARP: On the Benefits of Weight Averaged Rewarded Policies"),
        settings=("iterations", "runs", "anchor", "eta", *PPO_SETTINGS),
        needs_reward=True,
        has_reference=True,
        continues=True,
    ),
)
METHODS = {row.name: row for row in ROWS}

# What `preftune ppo --algorithm` trains by instead of PPO, by the flag's value.
_NAMED = {
    "rloo": ("RLOO", RLOO),
    "grpo": ("GRPO", GRPO),
    "dr_grpo": (
        "Dr. GRPO",
        Paper("2503.20783", "Understanding R1-Zero-Like Training: A Critical Perspective"),
    ),
    "reinforce_plus_plus": (
        "REINFORCE++",
        Paper(
            "2501.03262",
            "REINFORCE++: A Simple and Efficient Approach for Aligning Large Language Models",
        ),
    ),
}
_NAMED["reinforce_plus_plus_baseline"] = (
    "REINFORCE++ with baseline",
    _NAMED["reinforce_plus_plus"][1],
)
_NAMED["group_relative"] = _NAMED["rloo"]
ALGORITHMS = {
    algorithm: replace(
        METHODS["ppo"],
        name=algorithm,
        title=f"Tune the policy with {title}",
        card=f"{title} ({{paper}}) in PPO's loop, held to its reference by a KL penalty.",
        paper=paper,
        settings=SIBLINGS_SETTINGS,
    )
    for algorithm, (title, paper) in _NAMED.items()
}


def method_of(name: str | None, settings: Mapping[str, object]) -> Method | None:
    """Return the row of a recorded run; None if it is not known.

    Args:
        name: the run's method, as run.json has it.
        settings: its settings. Of PPO's runs they say which algorithm learned.
    """
    algorithm = settings.get("algorithm")
    if name == "ppo" and isinstance(algorithm, str) and algorithm in ALGORITHMS:
        return ALGORITHMS[algorithm]
    return METHODS.get(name or "")
