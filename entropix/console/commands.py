"""What the command `entropix` does by a word of its own."""

# The module below `entropix`, and a line about it.
COMMANDS = {
    "main": ("main", "answer prompts, or chat; what is done without a COMMAND"),
    "score": ("score", "metrics and log-probabilities of a given text"),
    "compare": ("compare", "several samplers on the same prompts"),
    "sweep": ("sweep", "every combination of a sampler's numbers"),
    "calibrate": ("calibrate", "a sampler's numbers, chosen for a model"),
    "evaluate": ("evaluate", "arms of a protocol on tasks with right answers, with what they cost"),
    "lm_eval": ("lm_eval", "tasks of lm-evaluation-harness, with any sampler"),
    "report": ("report.__main__", "traces as one page, or as figures"),
    "replay": ("replay", "a trace generated again and compared"),
    "logprobs": ("logprobs", "a trace as OpenAI's logprobs"),
    "download": ("download", "fetch the default model, or one of Hugging Face"),
    "convert": ("convert", "GGUF files and Meta's originals to a folder for --weights"),
    "completion": (
        "console.completion",
        "a script by which bash or zsh completes these words and their flags",
    ),
}
