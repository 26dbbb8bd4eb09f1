"""From a config to a language model that DSPy can call: address, attempts, prices, limits, pools and batches."""

from refed_dspy.teachers.teacher import Teacher, TeacherLike, open_teacher

__all__ = ["Teacher", "TeacherLike", "open_teacher"]
