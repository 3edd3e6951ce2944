"""One web page about one run or several: ``lit-edit report RUN [RUN ...]``.

Every element of the page is built by :func:`lit_edit.report.markup.node`, which knows texts and elements and nothing between
them, so that nothing a run has in its files can become markup.
"""
