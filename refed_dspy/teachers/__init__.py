"""From a config to a language model that DSPy can call: address, attempts, and the embedded model."""

from refed_dspy.teachers.teacher import Teacher, TeacherLike, open_teacher

__all__ = ["Teacher", "TeacherLike", "open_teacher"]
