"""Evaluation: decode greedily, score by each task's official metric, report in one page.

Reading order: ``metrics`` (how right an answer is) with ``vqa_text`` (its text normalisations),
``generate`` (a model's answers), ``score`` (tables of scores), ``report`` (the page).
"""
