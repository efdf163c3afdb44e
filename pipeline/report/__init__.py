"""What people look at: plots, pictures, the HTML page, explanations, notebook views.

Here belong opened runs and image sets as users hold them, and everything that draws or describes
them. Nothing is measured here: figures come from what a run has written. A new section of the
page is a function in `page_content` and a block of its template.
"""
