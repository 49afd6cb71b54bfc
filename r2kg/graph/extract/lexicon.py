"""Words of chest radiographs by kind: `name = spelling, spelling; name; ...`. Our own list; facts of the trade only.

The name is what an entity is called in a graph. Plurals need not be listed: `spellings` makes them of the last word.
"""

from functools import cache

from r2kg.graph.schema import Kind

DISORDER = """
pleural effusion = effusion, pleural fluid, hydrothorax, pleural fluid collection; pneumothorax = ptx,
pneumothoraces, hydropneumothorax; pleural thickening = pleural reaction, pleuroparenchymal thickening;
pleural plaque; pleural scarring; hemothorax; empyema; pericardial effusion; pericardial calcification;
pneumomediastinum; pneumoperitoneum = free air, free intraperitoneal air, free subdiaphragmatic air,
free peritoneal air; pneumopericardium; subcutaneous emphysema = subcutaneous air, subcutaneous gas,
soft tissue emphysema; cardiomegaly = enlarged heart, cardiac enlargement, enlargement of the heart,
enlargement of the cardiac silhouette, enlargement of cardiac silhouette, heart enlargement,
enlarged cardiac silhouette, enlarged heart size, cardiac silhouette enlargement; widening; elevation;
shift = deviation; mass effect; enlargement; distention = distension; tortuosity; ectasia; uncoiling;
prominence = fullness; pulmonary edema = edema, oedema, interstitial edema, alveolar edema,
pulmonary interstitial edema, fluid overload, volume overload, interstitial pulmonary edema;
congestion = vascular congestion, pulmonary vascular congestion, pulmonary venous congestion,
venous congestion, pulmonary congestion, central vascular congestion, engorgement;
heart failure = congestive heart failure, chf, cardiac failure, cardiac decompensation, left heart failure,
congestive failure; pulmonary hypertension = pulmonary arterial hypertension;
pulmonary venous hypertension = pvh; hypertension; consolidation = airspace consolidation,
air space consolidation; airspace disease = air space disease, alveolar disease; infiltrate = infiltration;
opacity = opacification, opacities, airspace opacity, air space opacity, density opacity;
density = increased density; lucency = hyperlucency, radiolucency; haze = haziness;
atelectasis = atelectatic change, atelectases, atelectatic; collapse = lobar collapse, lung collapse;
volume loss = loss of volume; band; scar = scarring, cicatrix, fibrotic scarring, scarring change,
parenchymal scarring; fibrosis = fibrotic change, pulmonary fibrosis; honeycombing;
interstitial lung disease = ild, interstitial disease; reticulation = reticular opacity; air bronchogram;
bronchiectasis; bronchitis; bronchiolitis; peribronchial cuffing = bronchial cuffing,
bronchial wall thickening, peribronchial thickening; pneumonia = pneumonitis, bronchopneumonia,
pneumonic infiltrate, pneumonic process; infection = infectious process, infectious disease;
inflammation = inflammatory process; aspiration; tuberculosis = tb; sarcoidosis = sarcoid; silicosis;
asbestosis; pneumoconiosis; histoplasmosis; granulomatous disease = granulomatous change,
granulomatous infection, granulomatous process, granulomata; granuloma; nodule = nodular density,
nodular opacity, nodularity, pulmonary nodule; micronodule; mass = mass lesion, masslike opacity; lesion;
cavity = cavitation, cavitary lesion; cyst; bulla = bullae, bleb, bullous disease; metastasis = metastases,
metastatic disease, metastatic lesion; malignancy = cancer, carcinoma, neoplasm, tumor, malignant process,
neoplastic process; lymphoma; lymphadenopathy = adenopathy, enlarged lymph node, lymph node enlargement;
hyperinflation = hyperexpansion, overinflation, hyperaeration, overexpansion; emphysema = emphysematous change,
pulmonary emphysema; copd = chronic obstructive pulmonary disease, obstructive lung disease,
chronic obstructive lung disease, obstructive disease, chronic lung disease; asthma;
reactive airways disease = reactive airway disease, small airways disease; air trapping; flattening; blunting;
obscuration; hiatal hernia = hiatus hernia; hernia; eventration; phrenic palsy;
air-fluid level = air fluid level; fracture = fx, compression fracture, fracture deformity; dislocation;
subluxation; deformity = compression deformity, wedge deformity, wedging; callus; trauma = injury; contusion;
laceration; scoliosis = dextroscoliosis, levoscoliosis, scoliotic curvature; kyphosis; curvature;
osteophyte = osteophytosis, spurring, spur, osteophyte formation; degenerative change = degenerative disease,
degenerative disc disease, degenerative joint disease, spondylosis, arthritic change, arthritis,
osteoarthritis, osteoarthritic change, arthropathy, endplate change; osteopenia = demineralization,
osteoporosis, bone demineralization; lytic lesion; sclerotic lesion; sclerosis;
atherosclerosis = atherosclerotic disease, atherosclerotic change; calcification = vascular calcification,
atherosclerotic calcification; aneurysm = aneurysmal dilatation; dilatation = dilation; stenosis;
embolism = pulmonary embolism, pulmonary embolus; dissection; infarct = infarction; hemorrhage; hematoma;
abscess; fistula; obstruction; dish = diffuse idiopathic skeletal hyperostosis; hyperostosis;
abnormality = abnormal finding, acute finding, bony finding, acute bony finding, osseous finding,
significant finding, suspicious finding, focal finding, disease, disease process, process, pathology,
cardiopulmonary abnormality, cardiopulmonary disease, cardiopulmonary process, cardiopulmonary finding,
cardiopulmonary pathology, pulmonary disease, pulmonary abnormality, pulmonary process, lung disease,
chest disease, thoracic abnormality, intrathoracic process, intrathoracic abnormality,
radiographic abnormality, osseous abnormality, bony abnormality, bone abnormality, skeletal abnormality,
osseous lesion, cardiac disease, disease; complication; sequela = sequelae, sequel; fluid = fluid collection;
tension; kink; discontinuity; thickening; foreign body; anomaly
"""
ANATOMY = """
epicardial fat pad = epicardial fat, pericardial fat pad, fat pad; middle lung = midlung, mid lung;
lung = pulmonary parenchyma, lung parenchyma, lung field, pulmonary, lung tissue, parenchyma; lobe; lingula;
segment; zone = lung zone; base = lung base, basal region, bibasilar region, basilar region; apex = apices,
lung apex, lung apices, apical region; hilum = hila, hilar, hilar region, hilar structure, hilar contour,
hilus; perihilar region = perihilar, perihilar area; parahilar region = parahilar;
suprahilar region = suprahilar; infrahilar region = infrahilar; lung volume = volume of the lungs;
airspace = air space; interstitium; bronchus = bronchi, main bronchus, mainstem bronchus, mainstem;
bronchovascular marking = bronchovascular structure; trachea = tracheal, tracheal air column; carina; airway;
heart = heart size, cardiac silhouette, cardiac size, cardiac contour, heart shadow, cardiac, cardiac shadow,
heart contour, cardiac chamber, heart silhouette, cor;
cardiomediastinal silhouette = cardiomediastinal contour, cardiac and mediastinal contour,
cardiac mediastinal silhouette, cardio mediastinal silhouette, cardiomediastinum, heart and mediastinum,
cardiomediastinal structure; heart border = cardiac border, cardiac margin; ventricle; atrium = atria;
pericardium = pericardial; mitral valve; aortic valve; mitral annulus; coronary artery;
mediastinum = mediastinal, mediastinal contour, mediastinal silhouette, mediastinal structure,
mediastinal width, mediastinal shadow; anterior mediastinum; paratracheal stripe;
paratracheal region = paratracheal; vascular pedicle; aortopulmonary window = ap window;
aorta = thoracic aorta, aortic, aortic contour; aortic knob = aortic knuckle; aortic arch;
descending aorta = descending thoracic aorta; ascending aorta; pulmonary artery = pulmonary arteries,
pulmonary arterial trunk; pulmonary vein; vein; superior vena cava = svc; inferior vena cava = ivc;
cavoatrial junction = caval atrial junction, atriocaval junction; brachiocephalic vein; subclavian vein;
azygos vein; jugular vein = jugular, internal jugular vein; vessel = vasculature, vascularity,
vascular structure; vascular marking = markings, lung marking, pulmonary marking, vascular lung marking;
pulmonary vasculature = pulmonary vascularity, pulmonary vessel, pulmonary vascular marking,
pulmonary vascular; interstitial marking = lung interstitial marking; pleura = pleural, pleural surface;
pleural space; visceral pleural line = visceral line, pleural line; costophrenic angle = costophrenic sulcus,
costophrenic sulci, cp angle, costophrenic recess, costophrenic; cardiophrenic angle = cardiophrenic;
fissure = minor fissure, major fissure, interlobar fissure; diaphragm = diaphragmatic, diaphragmatic contour;
hemidiaphragm = diaphragmatic dome; subdiaphragmatic region = subdiaphragmatic;
retrocardiac region = retrocardiac, retrocardiac space; retrosternal space = retrosternal airspace,
retrosternal air space, retrosternal clear space, retrosternal; intercostal space; chest = thorax,
thoracic cavity, hemithorax, intrathoracic; chest wall = thoracic wall; axilla; neck; breast; soft tissue;
abdomen = upper abdomen; stomach = gastric bubble, gastric; bowel; colon; liver; gallbladder; esophagus;
spleen; shoulder; humerus; scapula = scapulae; bone = osseous structure, bony structure, bony thorax, skeleton,
osseous, bony, skeletal structure, skeletal, osseous thorax, bony skeleton, osseous skeleton,
visualized osseous structure; rib; clavicle; sternum = sternal; manubrium; vertebra = vertebrae, vertebral;
vertebral body; disc space = disk space, intervertebral disc space; spine = spinal, vertebral column;
thoracic spine = dorsal spine, thoracic vertebra, thoracic vertebrae; lumbar spine; cervical spine;
acromioclavicular joint = ac joint; joint; glenohumeral joint; lymph node; thyroid; kidney;
quadrant = abdominal quadrant
"""
DEVICE = """
pacemaker = cardiac pacemaker, pacer, pacing device, pacemaker device, pacemaker generator, pulse generator;
icd = aicd, implantable cardioverter defibrillator, defibrillator; lead = pacer lead, pacemaker lead,
pacing lead; generator; electrode; wire = sternal wire, sternotomy wire, median sternotomy wire, cerclage wire;
pacing wire; central venous line = central line, central venous catheter, cvc, central catheter;
picc line = picc, peripherally inserted central catheter, picc catheter; jugular line;
subclavian catheter = subclavian line; dialysis catheter; catheter = indwelling catheter; port = port-a-cath,
portacath, mediport, infusion port, port catheter, chest port, infuse a port;
swan-ganz catheter = swan ganz catheter; tip = catheter tip, line tip; line; sheath;
balloon pump = intra-aortic balloon pump, iabp; endotracheal tube = et tube, ett, endotracheal;
tracheostomy tube = tracheostomy; nasogastric tube = ng tube, ngt, enteric tube, orogastric tube, feeding tube,
dobbhoff tube, og tube; chest tube = thoracostomy tube, pleural catheter, pigtail catheter, pleural drain;
drain; tube; stent; filter; coil; clip = surgical clip; suture; staple; screw; plate; rod = spinal rod;
hardware = orthopedic hardware, fixation hardware, spinal fusion hardware, surgical hardware, fusion hardware;
prosthesis; valve prosthesis = prosthetic valve, valve replacement, prosthetic heart valve, mechanical valve;
implant = breast implant; monitor lead = ekg lead, ecg lead, eeg lead; device = support device,
monitoring device; anchor; vascular graft
"""
PROCEDURE = """
sternotomy = median sternotomy; coronary artery bypass graft = cabg, coronary bypass,
coronary artery bypass grafting, coronary artery bypass surgery, bypass graft; thoracotomy; lobectomy;
pneumonectomy; mastectomy; cholecystectomy; thoracentesis; surgery = surgical change, postsurgical change,
postoperative change, post surgical change, post operative change, postoperative; resection; intubation;
extubation; biopsy; fusion = spinal fusion; vertebroplasty; kyphoplasty; transplant;
radiation = radiation therapy; computed tomography = ct, chest ct, ct scan, ct chest; ultrasound; mri;
mammography; bronchoscopy; echocardiogram = echocardiography
"""
CONCEPT = """
normal = unremarkable, within normal limits, regular, grossly normal, normal in size, normal limits,
normal range; clear; aerated = well aerated, well-aerated; expanded = well expanded, well-expanded,
well inflated; intact; midline; sharp; dry; adequate; satisfactory = appropriate, good, acceptable; smooth;
abnormal; stable; unchanged = not changed, similar in appearance; similar; new; old = remote; recent; acute;
subacute; chronic = longstanding, long-standing; healed = healing, old healed; increased = increasing,
increase, elevated level; decreased = decreasing, decrease, diminished, reduced; improved = improving,
improvement; worsened = worsening, worse, progressed, progression; persistent = persisting, redemonstrated;
residual; resolving; developing; transient; subtle; small = tiny, minute, trace, minuscule; mild = minimal,
minor, slight, slightly, mildly, minimally; moderate = moderately, moderate sized, moderate-sized,
mild to moderate; large = massive; severe = marked, markedly, advanced, significant, severely, marked degree;
borderline = upper limits of normal, borderline enlarged, top normal, borderline in size; low = shallow; high;
extensive; enlarged = increased in size, enlarging; prominent; widened; thickened; broad; wide; elevated;
flattened; blunted; obscured = silhouetted; rounded; tortuous = tortuous and ectatic, ectatic, unfolded,
uncoiled; dilated; distended; collapsed; hyperinflated = hyperexpanded, hyperaerated;
hypoinflated = hypoventilated, hypoexpanded, underinflated, hypoaerated, low inflation; depressed;
left convex = convex left, convex to the left; right convex = convex right, convex to the right;
left = left-sided, left sided; right = right-sided, right sided; bilateral; unilateral; upper; lower; middle;
mid; apical; basilar = basal, bibasilar, bibasal; lateral; medial; anterior; posterior; central; peripheral;
subpleural; subsegmental; segmental; lobar; dependent; linear; platelike = plate-like, discoid; patchy; focal;
multifocal; diffuse = diffusely; scattered; hazy; dense; faint; nodular; reticular; reticulonodular;
interstitial; alveolar; bronchovascular; confluent; ill-defined = ill defined, indistinct margins; indistinct;
cephalized; well circumscribed = well-circumscribed, well defined, well-defined; round; irregular; spiculated;
calcified = partially calcified, densely calcified; noncalcified; cavitary; cystic; bullous; loculated;
layering; coarse; coarsened; crowded = crowding; streaky; strandy; fibrotic; granulomatous; degenerative;
atherosclerotic; sclerotic; lytic; displaced; nondisplaced; comminuted; benign; malignant; metastatic;
solitary; single; multiple = several; numerous; postoperative; pathologic = pathological; suspicious;
continuous; symmetric = symmetrical; asymmetric = asymmetrical; asymmetry; cardiothoracic ratio; meniscus; gas;
nonspecific
"""
TEXTS: dict[Kind, str] = {
    "disorder": DISORDER, "anatomy": ANATOMY, "device": DEVICE, "procedure": PROCEDURE, "concept": CONCEPT,
}  # fmt: skip


@cache
def spellings() -> dict[str, tuple[str, Kind]]:
    """Every spelling, lower case, → (name, kind). What is listed goes before plurals that are made, and a kind before
    those below it in `TEXTS`."""
    known: dict[str, tuple[str, Kind]] = {}
    for make in (lambda term: [term], plurals):
        for kind, text in TEXTS.items():
            for entry in text.split(";"):
                name, _, others = entry.partition("=")
                name = " ".join(name.split())
                for term in (name, *(" ".join(other.split()) for other in others.split(","))):
                    if term and (make is not plurals or kind != "concept"):
                        for spelling in make(term):
                            known.setdefault(spelling, (name, kind))
    return known


def plurals(term: str) -> list[str]:
    """The plural of a term's last word, as far as rules go."""
    if term.endswith(("s", "x", "ch", "sh")):
        more = [term + "es"] + ([term[:-2] + "es"] if term.endswith("is") else [])
    elif term.endswith("y") and term[-2] not in "aeiou":
        more = [term[:-1] + "ies"]
    else:
        more = [term + "s"]
    if term.endswith("um"):
        more.append(term[:-2] + "a")
    return more
