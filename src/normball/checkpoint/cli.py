import argparse, sys
from pathlib import Path
from normball.checkpoint import constrain
from normball.checkpoint.errors import CheckpointError
from normball.checkpoint.model import open_model
from normball.checkpoint.rules import choose, read_rules
from normball.checkpoint.signals import Stopped, stoppable
from normball.checkpoint.workers import Workers
def main(argv=None):
    p=argparse.ArgumentParser(); p.add_argument('cmd'); p.add_argument('model',nargs='+'); p.add_argument('--max-norm',type=float); p.add_argument('-o',dest='out',type=Path)
    p.add_argument('--layout'); p.add_argument('--rule',action='append',default=[])
    p.add_argument('--force',action='store_true'); p.add_argument('--no-resume',action='store_true'); p.add_argument('--verify',action='store_true'); p.add_argument('--dry-run',action='store_true'); p.add_argument('-j',type=int,default=1)
    a=p.parse_args(argv)
    try:
        with stoppable(), open_model(a.model) as m, Workers(a.j) as w:
            constrain.run(m,choose(m.tensors,read_rules(a.rule),a.layout,a.max_norm),a.out,force=a.force,resume=not a.no_resume,dry_run=a.dry_run,verify=a.verify,workers=w,report=lambda o:None)
    except CheckpointError as e:
        print(f'normball: {e}',file=sys.stderr); return 2
    except Stopped as e:
        print(f'normball: {e}',file=sys.stderr); return 128+e.number
    return 0
