// JSON schemas of zod's common types, for every draft that it writes: one object, by name.
import * as z from "zod";

const tree = z.object({
  value: z.number(),
  get children() {
    return z.array(tree);
  },
});
const cat = z.object({ kind: z.literal("cat"), name: z.string() });
const dog = z.object({ kind: z.literal("dog"), good: z.boolean() });
const types = {
  record: z.record(z.string(), z.number()),
  "record of enum": z.record(z.enum(["a", "b"]), z.number()),
  "partial record": z.partialRecord(z.enum(["a", "b"]), z.number()),
  "record of numbers": z.record(z.number(), z.string()),
  "record of regex": z.record(z.string().regex(/^x/), z.number()),
  "record of records": z.record(z.string(), z.record(z.string(), z.array(z.string()))),
  "discriminated union": z.discriminatedUnion("kind", [cat, dog]),
  "default tags": z.discriminatedUnion("kind", [
    z.object({ kind: z.literal("cat").default("cat") }),
    z.object({ kind: z.literal("dog").default("dog") }),
  ]),
  union: z.union([z.string(), z.number()]),
  intersection: z.intersection(z.object({ a: z.string() }), z.object({ b: z.number() })),
  tuple: z.tuple([z.string(), z.number()]),
  "tuple and rest": z.tuple([z.string()], z.number()),
  array: z.array(z.string()).min(1).max(3),
  email: z.email(), url: z.url(), uuid: z.uuid(), guid: z.guid(), emoji: z.emoji(), nanoid: z.nanoid(),
  cuid: z.cuid(), cuid2: z.cuid2(), ulid: z.ulid(), xid: z.xid(), ksuid: z.ksuid(), ipv4: z.ipv4(), ipv6: z.ipv6(),
  cidrv4: z.cidrv4(), cidrv6: z.cidrv6(), base64: z.base64(), base64url: z.base64url(), e164: z.e164(), jwt: z.jwt(),
  hostname: z.hostname(), hex: z.hex(), mac: z.mac(),
  date: z.iso.date(), time: z.iso.time(), datetime: z.iso.datetime(), offset: z.iso.datetime({ offset: true }),
  duration: z.iso.duration(),
  int: z.int(), int32: z.int32(), float64: z.float64(), bounds: z.number().gt(0).lt(10).multipleOf(0.5),
  boolean: z.boolean(), null: z.null(), any: z.any(), never: z.object({ a: z.never().optional() }),
  literals: z.literal(["a", 1, null]), enum: z.enum(["x", "y"]), nullable: z.string().nullable(),
  optional: z.object({ a: z.string().optional() }), defaulted: z.object({ a: z.string().default("x") }),
  strict: z.strictObject({ a: z.string() }), loose: z.looseObject({ a: z.string() }),
  catchall: z.object({ a: z.string() }).catchall(z.number()), tree, template: z.templateLiteral(["a", z.number()]),
  "parts of a text": z.string().startsWith("ab").endsWith("z").includes("m"), letters: z.string().regex(/^\p{L}+$/u),
  password: z.string().regex(/^(?=.*\d)[a-z\d]{8,}$/), lower: z.string().lowercase(), json: z.json(),
  described: z.string().describe("d").meta({ title: "t", examples: ["a"] }),
};
const found = {};
for (const [name, type] of Object.entries(types))
  for (const target of ["draft-2020-12", "draft-7", "draft-4"])
    for (const io of ["input", "output"]) {
      try {
        found[`${name}, ${target}, ${io}`] = z.toJSONSchema(type, { target, io });
      } catch {
        // A draft that can't say it.
      }
    }
console.log(JSON.stringify(found));
