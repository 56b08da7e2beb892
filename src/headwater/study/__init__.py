"""The paper as a program: its tasks, tables and causes, and the controls it lacked, on whatever model one gives.

A `Task` is rows and queries with classes; a `World` is a task with a model that was trained on it; a `Part` measures something in a world
and leaves `Cell`s. Adding a task, a part or a model is adding one file and its line in a registry.
"""
