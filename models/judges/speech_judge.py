"""A judge of speech, fitted to real utterances in seconds: which of some texts is said, and who says it.

Support vector machines (Cortes and Vapnik 1995) of what the recogniser hears of a sound. It never heard what it judges,
nor any model; how often it is right on held-out recordings is to be told beside what it says of made ones.

Shape letters: N sounds, T samples.
"""

from collections.abc import Sequence
from typing import Any, Final

import torch
from torch import Tensor

from models.judges.recogniser import features

SLACK: Final = 5.0  # what a sound on the wrong side costs
QUIET: Final = 1e-2  # of a sound's peak, -40 dB: what is not louder is before or after the speech


class SpeechJudge:
    """One machine of texts and one of speakers.

    Example:
        >>> time = torch.arange(2000) / 8000
        >>> sounds = [(6.28 * hertz * time).sin() for hertz in (300, 310, 900, 910)]
        >>> judge = SpeechJudge(sounds, ["low", "low", "high", "high"], ["ann", "bob"] * 2, 8000)
        >>> judge.heard(sounds)
        ['low', 'low', 'high', 'high']
    """

    def __init__(
        self,
        sounds: Sequence[Tensor],
        texts: Sequence[str],
        speakers: Sequence[str],
        sample_rate: int,
    ) -> None:
        """Fit real sounds (T,) in [-1, 1] to what is said in them, and by whom; of each there must be two or more."""
        self._rate = sample_rate
        seen = self._features(sounds)
        self._texts, self._speakers = (self._fitted(seen, names) for names in (texts, speakers))

    def heard(self, sounds: Sequence[Tensor]) -> list[str]:
        """Return the likeliest text of every sound."""
        return [str(one) for one in self._texts.predict(self._features(sounds))]

    def known(self, sounds: Sequence[Tensor]) -> list[str]:
        """Return the likeliest speaker of every sound."""
        return [str(one) for one in self._speakers.predict(self._features(sounds))]

    def _fitted(self, seen: Any, names: Sequence[str]) -> Any:
        from sklearn.dummy import DummyClassifier
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
        from sklearn.svm import SVC

        alone = len(set(names)) == 1  # there is nothing to tell
        machine = DummyClassifier() if alone else make_pipeline(StandardScaler(), SVC(C=SLACK))
        return machine.fit(seen, list(names))

    def _features(self, sounds: Sequence[Tensor]) -> Any:
        spoken = [trimmed(one) for one in sounds]
        length_N = torch.tensor([len(one) for one in spoken])
        sound_NT = torch.nn.utils.rnn.pad_sequence(spoken, batch_first=True)
        return features(sound_NT, length_N, self._rate).numpy()


def trimmed(sound_T: Tensor) -> Tensor:
    """Return what of a sound (T,) is between its first and its last sample that is not quiet; one sample at least."""
    loud = (sound_T.abs() > QUIET * sound_T.abs().max()).nonzero()[:, 0].tolist()
    return sound_T[loud[0] : loud[-1] + 1] if loud else sound_T[:1]
