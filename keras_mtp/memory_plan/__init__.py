"""How much memory a run will take at its peak, from sizes alone: no model is loaded, nothing is computed.

    kept         the program itself, pretrained weights, trained weights: all the time
    phases       loading, evaluation, generation, warm-up, training, saving; each adds its own, and the largest decides

What a phase holds is counted by its shapes. What a backend really keeps of it differs: XLA merges operations and computes
some again, TensorFlow frees late, torch keeps what autograd asks for. So every part is multiplied by a factor, measured
per backend by `tools/measure_memory.py` and kept in `factors.toml`, with how and when. Nothing here is tuned by hand.

    workload     what of a run decides its memory
    parts        what it holds in every phase, counted
    measured     the factors of a backend
    prediction   both together

B rows, N positions, D hidden size, V vocabulary, K heads, as everywhere.

Reference: Korthikanti et al. 2022, arXiv 2205.05198, section 4 (what a block's backward pass needs).
"""

from keras_mtp.memory_plan.measured import FACTORS, factors, weighed
from keras_mtp.memory_plan.parts import PARTS, counted
from keras_mtp.memory_plan.prediction import Prediction, predict
from keras_mtp.memory_plan.workload import Workload

__all__ = ["FACTORS", "PARTS", "Prediction", "Workload", "counted", "factors", "predict", "weighed"]
