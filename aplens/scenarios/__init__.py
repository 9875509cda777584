"""Completion scenarios from code and prose: where prompts come from, what should follow them."""

from aplens.scenarios.corpus import (
    Corpus,
    DatasetCorpus,
    SourceFile,
    TextCorpus,
    find_jdk_source,
    open_corpus,
    python_standard_library,
)
from aplens.scenarios.cutting import PromptBuilder
from aplens.scenarios.languages import LANGUAGES
from aplens.scenarios.mining import mine_scenarios
from aplens.scenarios.own import make_scenarios, predicted_scenarios
from aplens.scenarios.passages import prose_and_code
from aplens.scenarios.prompt_files import read_prompt_file
from aplens.scenarios.prose import english_prose
from aplens.scenarios.scenario import Scenario, ScenarioError, Scenarios
from aplens.scenarios.tasks import list_tasks

__all__ = [
    "LANGUAGES",
    "Corpus",
    "DatasetCorpus",
    "PromptBuilder",
    "Scenario",
    "ScenarioError",
    "Scenarios",
    "SourceFile",
    "TextCorpus",
    "english_prose",
    "find_jdk_source",
    "list_tasks",
    "make_scenarios",
    "mine_scenarios",
    "open_corpus",
    "predicted_scenarios",
    "prose_and_code",
    "python_standard_library",
    "read_prompt_file",
]
