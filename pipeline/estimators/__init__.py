"""scikit-learn's interface to the operations: classifiers that count in integers.

Here belong the classifiers, and what turns the arrays that scikit-learn's users have into images.
What they measure is measured by `ops` and `kernels`; they know no paths and no jobs.
"""
