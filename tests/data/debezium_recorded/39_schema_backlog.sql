-- @setup
CREATE TABLE public.sb (id int PRIMARY KEY, a text, b int);
INSERT INTO public.sb VALUES (1,'a',1);
-- @stream
INSERT INTO public.sb VALUES (2,'b',2);
-- @sync
ALTER TABLE public.sb ADD COLUMN c text DEFAULT 'dd';
INSERT INTO public.sb VALUES (3,'c',3,'x');
-- @sync
UPDATE public.sb SET a='z' WHERE id=1;
-- @sync
ALTER TABLE public.sb DROP COLUMN b;
INSERT INTO public.sb VALUES (4,'d','y');
-- @sync
ALTER TABLE public.sb RENAME COLUMN a TO aa;
INSERT INTO public.sb VALUES (5,'e','w');
-- @sync
ALTER TABLE public.sb ALTER COLUMN c TYPE varchar(10);
UPDATE public.sb SET c='q' WHERE id=5;
-- @sync
BEGIN; INSERT INTO public.sb VALUES (6,'f','1'); ALTER TABLE public.sb ADD COLUMN e numeric(5,1); INSERT INTO public.sb VALUES (7,'g','2',3.5); COMMIT;
-- @sync
ALTER TABLE public.sb RENAME TO sb2;
INSERT INTO public.sb2 VALUES (8,'h','3',4.5);
-- @sync
ALTER TABLE public.sb2 DROP CONSTRAINT sb_pkey;
INSERT INTO public.sb2 VALUES (9,'i','4',5.5);
-- @sync
CREATE TABLE public.newt (id int PRIMARY KEY, v text DEFAULT 'n');
INSERT INTO public.newt VALUES (1,'one'),(2,NULL);
UPDATE public.newt SET v='uno' WHERE id=1;
-- @sync
