import sys
from benchmarks import grade
grade.REPEATS=int(sys.argv[2])
if __name__ == "__main__":
    from benchmarks.__main__ import verdict
    for f in grade.run(int(sys.argv[1])): print(f"{f['name']:<26} ours {f['ours']:>14,.1f} ref {f['reference']:>14,.1f} {f['unit']} ratio {f['ratio']:6.2f} {verdict(f)}", f.get('details'))
