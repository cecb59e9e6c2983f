"""The main job, GTDDP beside its baselines on real DIGITS: `keras_examples.studies.digits` under a short name.

python -m keras_examples.digits            # about 5 minutes on two cores
python -m keras_examples.digits --quick    # less than one
"""

from keras_examples.studies.digits import main

if __name__ == "__main__":
    main()
