# The rooms whose own names go deeper.
from . import circuits as circuits
from . import correctness as correctness
from . import describe as describe
from . import heads as heads
from . import interventions as interventions
from . import mae as mae
from . import models as models
from . import patterns as patterns
from . import plots as plots
from . import prompts as prompts
from . import scenarios as scenarios
from . import study as study
from . import views as views

# The public names, in the order in which a user meets them.
from .models import load_model as load_model
from .prompts import read_prompts as read_prompts
from .scenarios import Scenarios as Scenarios
from .scenarios import make_scenarios as make_scenarios
from .scenarios import mine_scenarios as mine_scenarios
from .patterns import AttentionPatterns as AttentionPatterns
from .patterns import PatternCollector as PatternCollector
from .patterns import collect_patterns as collect_patterns
from .mae import APMAE as APMAE
from .mae import train_apmae as train_apmae
from .correctness import observe as observe
from .describe import score_heads as score_heads
from .ranking import rank_heads as rank_heads
from .heads import Head as Head
from .heads import HeadRanking as HeadRanking
from .heads import parse_heads as parse_heads
from .interventions import SweepPlan as SweepPlan
from .interventions import ablate_heads as ablate_heads
from .interventions import estimate_effects as estimate_effects
from .interventions import measure_effects as measure_effects
from .interventions import scale_heads as scale_heads
from .interventions import sweep_ablations as sweep_ablations
from .circuits import activation_patch as activation_patch
from .circuits import logit_difference as logit_difference
from .circuits import path_patch as path_patch
from .views import HeadMap as HeadMap
from .views import describe_heads as describe_heads
from .views import map_heads as map_heads
from .views import show_clusters as show_clusters
from .views import show_heads as show_heads
from .views import show_in_circuitsvis as show_in_circuitsvis

__version__: str
__all__: list[str]
