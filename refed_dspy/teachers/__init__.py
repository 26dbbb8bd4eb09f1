"""Who answers. teacher.py turns a config into a language model that DSPy can call: route.py (address, key), engine.py
(attempts, retries), rate_limits.py (429s), prices.py. A run asks through session.py (all models of a folder),
recorded.py (the ledger first), pool.py and by_stage.py (several teachers), caps.py (what is left of the caps).
"""

from refed_dspy.teachers.teacher import Teacher, TeacherLike, open_teacher

__all__ = ["Teacher", "TeacherLike", "open_teacher"]
