"""How a method is fitted on a budget: its parts, the choice of its settings, closed forms and
training by Lightning.
"""
