-- @setup
CREATE TABLE public.m (id int PRIMARY KEY, v int);
CREATE TABLE public.audit (n serial PRIMARY KEY, what text);
CREATE TABLE public.dep (id int PRIMARY KEY, m int REFERENCES public.m(id) ON DELETE CASCADE);
CREATE FUNCTION public.aud() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO public.audit(what) VALUES (TG_OP); RETURN NEW; END $$;
CREATE TRIGGER t AFTER INSERT OR UPDATE ON public.m FOR EACH ROW EXECUTE FUNCTION public.aud();
INSERT INTO public.m VALUES (1,1);
INSERT INTO public.dep VALUES (1,1);
-- @stream
INSERT INTO public.m VALUES (1,5),(2,2) ON CONFLICT (id) DO UPDATE SET v=excluded.v;
INSERT INTO public.m VALUES (1,6) ON CONFLICT DO NOTHING;
MERGE INTO public.m USING (VALUES (1,7),(3,3)) s(id,v) ON m.id=s.id WHEN MATCHED THEN UPDATE SET v=s.v WHEN NOT MATCHED THEN INSERT VALUES (s.id,s.v);
DELETE FROM public.m WHERE id=1;
WITH x AS (DELETE FROM public.m WHERE id=2 RETURNING *) INSERT INTO public.m SELECT 20,v FROM x;
