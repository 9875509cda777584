"""Completion scenarios mined from source code: where prompts come from and what should follow."""

from aplens.scenarios.corpus import (
    Corpus,
    DatasetCorpus,
    FolderCorpus,
    SourceFile,
    ZipCorpus,
    find_jdk_source,
    open_corpus,
    python_standard_library,
)
from aplens.scenarios.languages import LANGUAGES, Language
from aplens.scenarios.mining import mine_scenarios
from aplens.scenarios.prompts import FIM_MARKERS, PromptBuilder, TokenizedFile
from aplens.scenarios.scenario import Scenario, ScenarioError, Scenarios
from aplens.scenarios.tasks import SourceTree, Span, list_tasks

__all__ = [
    "FIM_MARKERS",
    "LANGUAGES",
    "Corpus",
    "DatasetCorpus",
    "FolderCorpus",
    "Language",
    "PromptBuilder",
    "Scenario",
    "ScenarioError",
    "Scenarios",
    "SourceFile",
    "SourceTree",
    "Span",
    "TokenizedFile",
    "ZipCorpus",
    "find_jdk_source",
    "list_tasks",
    "mine_scenarios",
    "open_corpus",
    "python_standard_library",
]
