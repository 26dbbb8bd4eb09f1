"""Who answers: recorded.py looks in the ledger first, pool.py and by_stage.py share the work between teachers.
teacher.py turns a config into a model: route.py (address, key), requests.py, engine.py (attempts, retries),
rate_limits.py (429s), prices.py."""

from refed_dspy.teachers.teacher import Teacher, TeacherLike, open_teacher

__all__ = ["Teacher", "TeacherLike", "open_teacher"]
